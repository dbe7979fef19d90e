//! The binary `taffrail`: configuration, wiring, listeners, TLS, drain, metrics.
//!
//! Start at [`serve::run`]. Time, randomness, environment and command line enter here and are passed inwards.

mod admin;
mod ambient;
mod backup;
mod cli;
mod config;
mod connection;
mod control;
mod data_dir;
mod drain;
mod first_password;
mod framing;
mod gate;
mod health;
mod http2;
mod import;
mod listen;
mod log;
mod metrics;
mod peer;
mod progress;
mod request;
mod request_id;
mod routes;
mod sendfile;
mod serve;
mod socket;
mod store;
mod supervisor;
mod tls;
mod turns;
mod vitals;
mod wire;
mod wiring;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;

use cli::{AdminCommand, Cli, Command, ConfigCommand};
use config::Environment;

/// Many small, short-lived buffers on many threads: the system's allocator keeps too much of them. Without huge pages (`no_thp`): a few
/// bytes here and there would hold 2 MiB each, five times the memory of a server at rest.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A wrong command line: nothing was begun. clap's own code for it is 2, which says of a restore that something is lost.
const EXIT_NOT_BEGUN: u8 = 3;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { EXIT_NOT_BEGUN } else { 0 };
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "taffrail: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let environment = Environment::of_process();
    let mut out = std::io::stdout();
    match cli.command {
        Command::Serve(options) => return serve::run(&options.load(&environment)?),
        Command::Backup(options) => return Ok(backup::run(&options, &environment)),
        Command::Restore(options) => return Ok(backup::restore(&options, &environment)),
        Command::Import(options) => return Ok(import::run(&options, &environment)),
        Command::Config(ConfigCommand::Check(options)) => {
            options.load(&environment)?;
            writeln!(out, "the configuration is good")?;
        }
        Command::Config(ConfigCommand::Show(options)) => {
            let shown = options.load(&environment)?.show();
            write!(out, "{}", serde_saphyr::to_string(&shown).context("cannot write YAML")?)?;
        }
        Command::Config(ConfigCommand::Reference) => write!(out, "{}", config::reference::markdown())?,
        Command::Admin(AdminCommand::References(place)) => admin::references(&place, &environment)?,
        Command::Admin(AdminCommand::ResetPassword(options)) => {
            admin::reset_password(&options, &environment)?
        }
    }
    Ok(ExitCode::SUCCESS)
}
