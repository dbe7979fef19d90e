//! `taffrail admin`: what an operator does to a data directory.

use std::io::{BufRead as _, Write as _};

use anyhow::{Context as _, bail};
use taffrail_blobstore::disk::Disk as _;
use taffrail_blobstore::disk::threads::ThreadsDisk;
use taffrail_core::backup::Line;

use crate::cli::{Place, ResetPassword};
use crate::config::Environment;
use crate::data_dir::DataDir;
use crate::{ambient, first_password};

/// Sets a user's password: one line of standard input, or a random one.
///
/// # Errors
/// When a server runs on the data directory (the error names its process), there is no such user, or the password is
/// refused.
pub(crate) fn reset_password(options: &ResetPassword, environment: &Environment) -> anyhow::Result<()> {
    let config = options.place.load(environment)?;
    let dir = DataDir::open_registry(&config.storage.data_dir)?;
    // A running server has sessions and verified passwords in memory that would outlive the old password.
    let disk =
        ThreadsDisk::open(&dir.store()).with_context(|| format!("cannot use {}", dir.store().display()))?;
    let _lock = disk.lock("taffrail admin").context("the server must be stopped first")?;

    let password = if options.generate {
        first_password::draw()
    } else {
        let mut line = String::new();
        std::io::stdin()
            .lock()
            .read_line(&mut line)
            .context("cannot read the password from standard input")?;
        let password = line.trim_end_matches(['\r', '\n']).to_owned();
        if password.is_empty() {
            bail!("no password on standard input; give one line, or --generate");
        }
        password
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(taffrail_core::facade::reset_password(
        &dir.database(),
        ambient::context(),
        &options.user,
        &password,
    ))?;
    let mut out = std::io::stdout();
    if options.generate {
        writeln!(out, "the password of {} is {password}", options.user)?;
    } else {
        writeln!(out, "the password of {} is changed", options.user)?;
    }
    // It does not open anything any more.
    if options.user == taffrail_core::facade::ADMIN {
        let _ = std::fs::remove_file(dir.initial_admin_password());
    }
    Ok(())
}

/// Prints what the catalog names.
///
/// # Errors
/// When there is no registry, or its catalog cannot be read.
pub(crate) fn references(place: &Place, environment: &Environment) -> anyhow::Result<()> {
    let config = place.load(environment)?;
    let dir = DataDir::open_registry(&config.storage.data_dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut written = Ok(());
    let mut print = |line: Line| {
        written = match line {
            Line::Repository { key, name } => writeln!(out, "repository {key} {name}"),
            Line::Reference { key, digest } => writeln!(out, "{key} {digest}"),
        };
        written.is_ok()
    };
    let listed = runtime.block_on(taffrail_core::backup::list(&dir.database(), &mut print));
    listed.context("cannot read the catalog")?;
    match written.and_then(|()| out.flush()) {
        // The reader has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}
