//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::Value;

use crate::config::{Config, ConfigError, Environment, Source};

/// Taffrail, a container registry.
#[derive(Debug, Parser)]
#[command(name = "taffrail", version, about, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the registry.
    Serve(Serve),
    /// Take a registry over that keeps its data as docker-registry (distribution) does: names and bytes. No server may run on
    /// the data directory. Can be interrupted and run again.
    ///
    /// Exit codes: 0 everything was taken over; 1 something was refused, and the report says what and why; 3 it could not begin, or
    /// not go on.
    Import(Import),
    /// Make a backup of the whole registry, whether or not the server runs; pushes and pulls go on, deletions wait a moment.
    ///
    /// Exit codes: 0 it is whole; 3 there is none.
    Backup(Backup),
    /// Make a data directory from a backup.
    ///
    /// Exit codes: 0 restored, and whole when that was verified; 2 restored, but something is lost; 3 not restored.
    Restore(Restore),
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Administer a data directory.
    #[command(subcommand)]
    Admin(AdminCommand),
}

/// Options of `import`.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The other registry's storage: the folder that holds docker/registry/v2, or that folder itself. It is only read.
    pub(crate) dir: PathBuf,
    /// How bytes are taken in [default: reflink where the file system can, else copy].
    #[arg(long, value_enum)]
    pub(crate) mode: Option<ImportMode>,
    /// Project of the repositories whose names have none, such as `app`.
    #[arg(long, value_name = "NAME", default_value = "library")]
    pub(crate) project: String,
    /// Point tags that name another manifest here already to the imported one; without it they stay, and are reported.
    #[arg(long)]
    pub(crate) move_tags: bool,
    /// Import into public projects as well: everybody can pull what is in them, without a login. The project `library` of a new
    /// registry is one.
    #[arg(long)]
    pub(crate) into_public: bool,
    /// Read names and manifests only, write nothing, and say what would be done. The digests of layers are not verified.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// What it says.
    #[command(flatten)]
    pub(crate) says: Says,
    /// Which data directory.
    #[command(flatten)]
    pub(crate) place: Place,
}

/// How an import takes bytes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImportMode {
    /// Large blobs share their extents with the other registry's files: nothing is written for them. Same file system only.
    Reflink,
    /// Everything is copied.
    Copy,
}

/// What a command says while it works and at its end.
#[derive(Debug, Args)]
pub(crate) struct Says {
    /// Print the report as one JSON document.
    #[arg(long)]
    pub(crate) json: bool,
    /// No progress bar, even on a terminal.
    #[arg(long)]
    pub(crate) quiet: bool,
}

/// Options of `backup`.
#[derive(Debug, Args)]
pub(crate) struct Backup {
    /// Folder of backups, outside of the data directory; each gets a folder of its own in it, named by the time.
    pub(crate) dir: PathBuf,
    /// List the backups in the folder instead.
    #[arg(long)]
    pub(crate) list: bool,
    /// How files get there [default: link on the same file system, else copy].
    #[arg(long, value_enum)]
    pub(crate) mode: Option<Carry>,
    /// What it says.
    #[command(flatten)]
    pub(crate) says: Says,
    /// Which data directory.
    #[command(flatten)]
    pub(crate) place: Place,
}

/// Options of `restore`.
#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// The backup; of a folder of backups, the newest one.
    pub(crate) dir: PathBuf,
    /// Then read every byte, and hold the store against the catalog.
    #[arg(long)]
    pub(crate) verify: bool,
    /// How files get there [default: link on the same file system, else copy].
    #[arg(long, value_enum)]
    pub(crate) mode: Option<Carry>,
    /// What it says.
    #[command(flatten)]
    pub(crate) says: Says,
    /// Which data directory. It must be empty, or not be there.
    #[command(flatten)]
    pub(crate) place: Place,
}

/// How files get into a backup and out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Carry {
    /// By a second name (hard link): at once, without taking space. What harms the file harms both.
    Link,
    /// By copying.
    Copy,
}

/// What can be done with the configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say whether the configuration is good; exit 1 and say why when it is not.
    Check(Serve),
    /// Print every value in force as YAML, with secrets masked.
    Show(Serve),
    /// Print the reference page of all keys, in Markdown.
    Reference,
}

/// What is done without the REST API.
#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// Give the administrator a new password.
    ResetPassword(ResetPassword),
    /// Print what the catalog names, for `taffrail-fsck`: a line `repository KEY NAME` for each repository, then a line `KEY DIGEST` for
    /// each manifest and blob that one of its manifests needs. The server may run.
    References(Place),
}

/// Options of `admin reset-password`.
#[derive(Debug, Args)]
pub(crate) struct ResetPassword {
    /// The user whose password is reset.
    #[arg(long, default_value = "admin")]
    pub(crate) user: String,
    /// Draw a random password and print it, instead of reading one line from standard input.
    #[arg(long)]
    pub(crate) generate: bool,
    /// Which data directory.
    #[command(flatten)]
    pub(crate) place: Place,
}

/// Options of what serves, or looks at what serving would take.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Address and port to listen on [default: 127.0.0.1:5000].
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<SocketAddr>,
    /// Which data directory.
    #[command(flatten)]
    pub(crate) place: Place,
}

/// Which configuration and which data: the options that all commands share.
#[derive(Debug, Args, Default)]
pub(crate) struct Place {
    /// Data directory [default: ./taffrail-data].
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Configuration file, YAML.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

impl Serve {
    /// The configuration that these options, the environment and the file make.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub(crate) fn load(&self, environment: &Environment) -> Result<Config, ConfigError> {
        let mut line = Source::command_line();
        if let Some(listen) = self.listen {
            line.push("server.listen", Value::from(listen.to_string()));
        }
        self.place.load_with(line, environment)
    }
}

impl Place {
    /// The configuration that these options, the environment and the file make.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub(crate) fn load(&self, environment: &Environment) -> Result<Config, ConfigError> {
        self.load_with(Source::command_line(), environment)
    }

    fn load_with(&self, mut line: Source, environment: &Environment) -> Result<Config, ConfigError> {
        if let Some(dir) = &self.data_dir {
            line.push("storage.data_dir", Value::from(dir.to_string_lossy().into_owned()));
        }
        Config::load(self.config.as_deref(), environment, line)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_takes_address_directory_and_file() {
        let cli = Cli::try_parse_from([
            "taffrail",
            "serve",
            "--listen",
            "127.0.0.1:7",
            "--data-dir",
            "/d",
            "--config",
            "/c.yaml",
        ])
        .unwrap();
        let Command::Serve(serve) = cli.command else { panic!("{cli:?}") };
        assert_eq!(serve.listen, Some("127.0.0.1:7".parse().unwrap()));
        assert_eq!(serve.place.data_dir, Some(PathBuf::from("/d")));
        assert_eq!(serve.place.config, Some(PathBuf::from("/c.yaml")));
    }

    #[test]
    fn what_does_not_serve_takes_no_address() {
        for command in
            [&["import", "/d"][..], &["backup", "/d"], &["restore", "/d"], &["admin", "references"]]
        {
            let line = ["taffrail"].iter().chain(command).copied();
            assert!(Cli::try_parse_from(line.clone()).is_ok(), "{command:?}");
            assert!(Cli::try_parse_from(line.chain(["--listen", "127.0.0.1:7"])).is_err(), "{command:?}");
        }
    }

    #[test]
    fn an_address_without_a_port_is_refused() {
        assert!(Cli::try_parse_from(["taffrail", "serve", "--listen", "localhost"]).is_err());
    }
}
