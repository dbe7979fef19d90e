//! `taffrail backup`: the whole registry as it is at one moment, while the server runs or not.
//!
//! What must stay true: removals are held before the catalog is copied, and the store is listed after it, so that whatever the copied
//! catalog names is in the copied store; what makes a folder a backup comes last.

mod carrier;
mod restore;
mod shelf;
mod source;
mod verify;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use indicatif::BinaryBytes;
use serde_json::{Value, json};
use taffrail_blobstore::{Algorithm, Hasher};
use taffrail_core::reconciliation::StoreIdentity;
use tokio::runtime::Runtime;

use crate::ambient;
use crate::cli::{Backup, Carry};
use crate::config::Environment;
use crate::control::hex;
use crate::data_dir::DataDir;
use crate::progress::Progress;

use carrier::Carrier;
use shelf::{MARKER, Marker, Shelf};
use source::{Sealed, Source};

pub(crate) use restore::run as restore;

/// Exit code when no backup was made.
const EXIT_FAILED: u8 = 3;

/// Makes a backup, or lists those that there are.
pub(crate) fn run(options: &Backup, environment: &Environment) -> ExitCode {
    let outcome = if options.list { list(options) } else { make(options, environment) };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "taffrail: backup: {error:#}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn list(options: &Backup) -> anyhow::Result<()> {
    let found = shelf::list(&options.dir)?;
    if options.says.json {
        say(&format!("{:#}\n", shelf::list_json(&options.dir, &found)));
    } else {
        say(&shelf::list_text(&found));
    }
    Ok(())
}

/// Standard output that is closed is the reader's own wish.
fn say(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// What was made.
struct Made {
    path: PathBuf,
    marker: Marker,
    /// How long no link could be removed.
    held: Duration,
    /// Of that, how long it took to end the log's segment and list the files.
    sealed: Duration,
}

impl Made {
    fn json(&self) -> Value {
        let mut value = self.marker.json();
        value["path"] = json!(self.path.display().to_string());
        value["held_seconds"] = json!(self.held.as_secs_f64());
        value["sealed_seconds"] = json!(self.sealed.as_secs_f64());
        value
    }

    fn text(&self) -> String {
        let Marker { files, bytes, mode, seconds, .. } = &self.marker;
        format!(
            "{}: {files} files of {} by {mode} in {seconds:.1} s; deletions waited {:.3} s\n",
            self.path.display(),
            BinaryBytes(*bytes),
            self.held.as_secs_f64()
        )
    }
}

fn make(options: &Backup, environment: &Environment) -> anyhow::Result<()> {
    let config = options.place.load(environment)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let dir = DataDir::open_registry(&config.storage.data_dir)?;
    let folder = resolved(&options.dir).with_context(|| options.dir.display().to_string())?;
    if folder.starts_with(dir.root()) {
        bail!("{} lies in the data directory; backups must not", folder.display());
    }
    let shelf = Shelf::open(&folder)?;
    shelf.sweep()?;
    let runtime = runtime()?;
    let (source, held) = Source::hold(&dir, &config, &runtime)?;
    let identity = StoreIdentity { uuid: held.uuid, next_lsn: held.next_lsn, links: 0 };
    let (partial, whole) = shelf.begin(&time_of_day(ambient::now_ms(), "%Y%m%dT%H%M%SZ")?)?;
    let progress = Progress::new(options.says.quiet);
    let filled = fill(&dir, options.mode, &partial, source, identity, &runtime, &progress);
    progress.end();
    let made = match filled {
        Ok(made) => made,
        Err(error) => {
            // Half a backup is of no use to anybody; what cannot be removed now is swept the next time.
            let _ = fs::remove_dir_all(&partial);
            return Err(error);
        }
    };
    shelf.finish(&partial, &whole).with_context(|| whole.display().to_string())?;
    let made = Made { path: whole, ..made };
    if options.says.json {
        say(&format!("{:#}\n", made.json()));
    } else {
        say(&made.text());
    }
    Ok(())
}

/// Where a path leads, the end of which need not be there yet.
fn resolved(path: &Path) -> std::io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let mut below = PathBuf::new();
    for above in path.ancestors() {
        match above.canonicalize() {
            Ok(above) => return Ok(if below.as_os_str().is_empty() { above } else { above.join(below) }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        // What is not there leads nowhere, and not back either.
        let Some(name) = above.file_name() else { return Err(std::io::ErrorKind::NotFound.into()) };
        below = if below.as_os_str().is_empty() { name.into() } else { Path::new(name).join(below) };
    }
    Err(std::io::ErrorKind::NotFound.into())
}

fn fill(
    dir: &DataDir,
    mode: Option<Carry>,
    partial: &Path,
    mut source: Source,
    identity: StoreIdentity,
    runtime: &Runtime,
    progress: &Progress,
) -> anyhow::Result<Made> {
    let (begun, made) = (Instant::now(), time_of_day(ambient::now_ms(), "%Y-%m-%dT%H:%M:%SZ")?);
    let mut carrier = Carrier::new(mode, progress, source.pulse()?);
    let pulse = source.pulse()?;
    let catalog = partial.join("catalog/taffrail.db");
    carrier.folder(&partial.join("catalog"))?;
    let database = dir.database();
    let copying = taffrail_core::backup::copy_database(&database, &catalog);
    runtime.block_on(pulse.beside(copying))?.context("the catalog")?;
    let sealing = Instant::now();
    let sealed = source.seal(runtime)?;
    let (held, sealed_took) = (begun.elapsed(), sealing.elapsed());
    progress.begin("backup", sealed.files.iter().filter_map(|file| file.len_bytes).sum());
    carry_store(&dir.store(), &partial.join("store"), &sealed, &mut carrier)?;
    for folder in [dir.keys(), dir.tls()] {
        carry_small(&folder, partial, &mut carrier)?;
    }
    let password = dir.initial_admin_password();
    if password.exists() {
        carrier.open(&password, &partial.join("initial-admin-password"))?;
    }
    // After the store is safe: nothing waits for it.
    let marking = taffrail_core::backup::mark_copy(&catalog, ambient::context(), &identity);
    runtime.block_on(pulse.beside(marking))?.context("the copy of the catalog")?;
    pulse.beat()?;
    File::open(&catalog)?.sync_all()?;
    source.end()?;
    let marker = Marker {
        made,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uuid: hex(&identity.uuid),
        next_lsn: sealed.next_lsn,
        mode: match carrier.way {
            Carry::Link => "link",
            Carry::Copy => "copy",
        }
        .to_owned(),
        files: carrier.files,
        bytes: carrier.bytes + fs::metadata(&catalog)?.len(),
        catalog_sha256: sha256_of(&catalog)?,
        seconds: begun.elapsed().as_secs_f64(),
    };
    carrier.flush()?;
    carrier.write(&partial.join(MARKER), format!("{:#}\n", marker.json()).as_bytes())?;
    File::open(partial)?.sync_all()?;
    Ok(Made { path: partial.to_path_buf(), marker, held, sealed: sealed_took })
}

fn carry_store(from: &Path, to: &Path, sealed: &Sealed, carrier: &mut Carrier<'_>) -> anyhow::Result<()> {
    carrier.folder(to)?;
    for file in &sealed.files {
        let (source, target) = (from.join(&file.name), to.join(&file.name));
        match carrier.sealed(&source, &target, file.len_bytes) {
            Ok(()) => {}
            // A checkpoint that a newer one took the place of: the log says everything. Or a blob that was lost before.
            Err(error) if file.len_bytes.is_none() && error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| source.display().to_string()),
        }
    }
    // The folders that every store has, also when nothing is in them.
    for folder in ["log", "solo", "index"] {
        carrier.folder(&to.join(folder))?;
    }
    carrier.write(&to.join(&sealed.superblock_name), &sealed.superblock)?;
    Ok(())
}

/// Copies the files of a small folder: keys and certificates, which may be replaced at any time.
fn carry_small(folder: &Path, to: &Path, carrier: &mut Carrier<'_>) -> anyhow::Result<()> {
    let Some(name) = folder.file_name() else { return Ok(()) };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| folder.display().to_string()),
    };
    let target = to.join(name);
    carrier.folder(&target)?;
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let path = entry.path();
            carrier
                .open(&path, &target.join(entry.file_name()))
                .with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")
}

fn time_of_day(now_ms: u64, form: &str) -> anyhow::Result<String> {
    let time = jiff::Timestamp::from_millisecond(i64::try_from(now_ms)?)?;
    Ok(time.strftime(form).to_string())
}

fn sha256_of(path: &Path) -> anyhow::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hasher.finish().encoded());
        }
        hasher.update(&buffer[..read]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_followed_as_far_as_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("data/store")).unwrap();
        std::os::unix::fs::symlink(root.join("data/store"), root.join("link")).unwrap();
        for (path, leads_to) in [
            ("link", "data/store"),
            ("link/new/er", "data/store/new/er"),
            ("link/../new", "data/new"),
            ("other", "other"),
        ] {
            assert_eq!(resolved(&root.join(path)).unwrap(), root.join(leads_to), "{path}");
        }
        assert!(resolved(&root.join("absent/../data")).is_err());
    }
}
