//! The configuration: where a value may come from, which one wins, and what makes no sense together.
//!
//! Precedence: command line, then environment (`TAFFRAIL__SECTION__KEY`), then file, then default. What must stay true:
//! a key that we do not know is an error, from whichever source; the process reads its environment here and nowhere else.

pub(crate) mod reference;
pub(crate) mod section;
pub(crate) mod sections;
mod source;
mod suggest;
pub(crate) mod values;

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use section::{Key, Section, SetError};
pub(crate) use sections::StorageIo;
use sections::{Bootstrap, Limits, Log, Metrics, Scrub, Server, Storage, Tls, TlsMode, Uploads};
pub(crate) use source::{Environment, Source};
use values::MetricsListen;

/// Keys that may also stand at the top of the file, outside any section: the ones that nearly every file has. `external_url`
/// stands there in Harbor's `harbor.yml` as well.
const SHORTHANDS: [(&str, &str); 4] = [
    ("listen", "server.listen"),
    ("external_url", "server.external_url"),
    ("insecure_http", "server.insecure_http"),
    ("data_dir", "storage.data_dir"),
];

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no YAML, or not a mapping of sections.
    #[error("{path} is not a configuration file: {message}")]
    Syntax {
        /// Which.
        path: String,
        /// Where and why.
        message: String,
    },
    /// No such key.
    #[error("{from}: {key} is not a key of the configuration{}", .suggestion.map(|s| format!("; did you mean {s}?")).unwrap_or_default())]
    Unknown {
        /// File, environment or command line.
        from: String,
        /// The key as written, with its section.
        key: String,
        /// The nearest key that exists.
        suggestion: Option<&'static str>,
    },
    /// A value that cannot stand there.
    #[error("{from}: {key}: {reason}")]
    Value {
        /// File, environment or command line.
        from: String,
        /// The key with its section.
        key: String,
        /// Why not.
        reason: SetError,
    },
    /// One key twice, in its section and as a shorthand.
    #[error("{from}: {key} is given twice, once without its section")]
    Twice {
        /// File, environment or command line.
        from: String,
        /// The key with its section.
        key: String,
    },
    /// Values that make no sense together.
    #[error("{0}")]
    Conflict(&'static str),
}

macro_rules! config {
    ($( $field:ident : $section:ident ),* $(,)?) => {
        /// The whole configuration, every value in force.
        #[derive(Debug, Clone, Default)]
        pub(crate) struct Config {
            $( pub(crate) $field: $section, )*
            /// Keys that somebody set, with their section.
            given: BTreeSet<String>,
        }

        impl Config {
            /// Every section with its text and its keys.
            pub(crate) fn sections() -> Vec<(&'static str, &'static [&'static str], Vec<Key>)> {
                vec![$( (stringify!($field), $section::ABOUT, $section::keys()), )*]
            }

            fn set(&mut self, section: &str, key: &str, value: &Value) -> Result<(), SetError> {
                match section {
                    $( stringify!($field) => self.$field.set(key, value), )*
                    _ => Err(SetError::Unknown),
                }
            }

            /// Every value in force; secrets are masked.
            pub(crate) fn show(&self) -> Value {
                let mut map = serde_json::Map::new();
                $( map.insert(stringify!($field).to_owned(), Value::Object(self.$field.show())); )*
                Value::Object(map)
            }
        }
    };
}

config! {
    server: Server,
    tls: Tls,
    storage: Storage,
    scrub: Scrub,
    uploads: Uploads,
    limits: Limits,
    metrics: Metrics,
    log: Log,
    bootstrap: Bootstrap,
}

impl Config {
    /// Puts the sources together: the file (if one is named), then the environment, then the command line.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub(crate) fn load(
        file: Option<&Path>,
        environment: &Environment,
        command_line: Source,
    ) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        if let Some(path) = file {
            config.apply(&Source::file(path)?)?;
        }
        config.apply(&environment.source())?;
        config.apply(&command_line)?;
        config.check()?;
        Ok(config)
    }

    /// Whether a key was set by anybody, rather than left at its default.
    pub(crate) fn is_given(&self, key: &str) -> bool {
        self.given.contains(key)
    }

    fn apply(&mut self, source: &Source) -> Result<(), ConfigError> {
        let mut seen = BTreeSet::new();
        for entry in &source.entries {
            let full = SHORTHANDS
                .iter()
                .find(|(short, _)| *short == entry.key)
                .map_or(entry.key.as_str(), |(_, full)| full);
            if !seen.insert(full.to_owned()) {
                return Err(ConfigError::Twice { from: source.from.clone(), key: full.to_owned() });
            }
            let (section, key) = full.split_once('.').unwrap_or((full, ""));
            match self.set(section, key, &entry.value) {
                Ok(()) => {
                    self.given.insert(full.to_owned());
                }
                Err(SetError::Unknown) => {
                    return Err(ConfigError::Unknown {
                        from: source.from.clone(),
                        key: entry.written.clone(),
                        suggestion: suggestion(full),
                    });
                }
                Err(reason) => {
                    return Err(ConfigError::Value {
                        from: source.from.clone(),
                        key: full.to_owned(),
                        reason,
                    });
                }
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), ConfigError> {
        let plain = self.tls.mode == TlsMode::Off;
        if plain && !self.server.listen.ip().to_canonical().is_loopback() && !self.server.insecure_http {
            return Err(ConfigError::Conflict(
                "server.listen is reachable from other machines, and tls.mode is off: passwords would cross the network \
                 in clear text. Set tls.mode to self_signed or files, or listen on 127.0.0.1 behind a proxy, or set \
                 server.insecure_http: true when you accept that",
            ));
        }
        match (self.tls.mode, &self.tls.cert_file, &self.tls.key_file) {
            (TlsMode::Files, Some(_), Some(_)) | (TlsMode::Off | TlsMode::SelfSigned, None, None) => {}
            (TlsMode::Files, _, _) => {
                return Err(ConfigError::Conflict(
                    "tls.mode is files: tls.cert_file and tls.key_file are needed",
                ));
            }
            (TlsMode::Off | TlsMode::SelfSigned, _, _) => {
                return Err(ConfigError::Conflict("tls.cert_file and tls.key_file are for tls.mode: files"));
            }
        }
        if let MetricsListen::At(address) = self.metrics.listen
            && !address.ip().to_canonical().is_loopback()
            && !self.metrics.expose
        {
            return Err(ConfigError::Conflict(
                "metrics.listen is reachable from other machines, and metrics need no login: listen on 127.0.0.1, or set \
                 metrics.expose: true",
            ));
        }
        if !self.storage.segment_bytes.is_power_of_two() {
            return Err(ConfigError::Conflict("storage.segment_bytes is not a power of two"));
        }
        if self.limits.page_entries_default > self.limits.page_entries_max {
            return Err(ConfigError::Conflict(
                "limits.page_entries_default is above limits.page_entries_max",
            ));
        }
        Ok(())
    }
}

/// The nearest key that exists. Names live as long as the program, so they are leaked once rather than copied around.
fn suggestion(wrong: &str) -> Option<&'static str> {
    static KNOWN: std::sync::LazyLock<Vec<String>> = std::sync::LazyLock::new(|| {
        Config::sections()
            .into_iter()
            .flat_map(|(section, _, keys)| keys.into_iter().map(move |key| format!("{section}.{}", key.name)))
            .collect()
    });
    // A key without its section, or in the wrong one, is the likeliest mistake of all.
    let bare = wrong.rsplit('.').next().unwrap_or(wrong);
    KNOWN
        .iter()
        .find(|known| known.rsplit('.').next() == Some(bare))
        .map(String::as_str)
        .or_else(|| suggest::nearest(wrong, KNOWN.iter().map(String::as_str)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_yaml(text: &str) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        config.apply(&Source::yaml("test.yaml", text)?)?;
        config.check()?;
        Ok(config)
    }

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        Environment::from_pairs(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    #[test]
    fn an_empty_file_gives_the_documented_defaults() {
        let config = from_yaml("").unwrap();
        assert_eq!(config.server.listen.to_string(), "127.0.0.1:5000");
        assert_eq!(config.server.drain_secs, 30);
        assert_eq!(config.limits.header_bytes_max, 32 * 1024);
        assert_eq!(config.limits.connections_per_ip_max, 1024);
        assert_eq!(config.storage.data_dir, Path::new("./taffrail-data"));
    }

    #[test]
    fn the_command_line_beats_the_environment_beats_the_file_beats_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("taffrail.yaml");
        std::fs::write(&file, "server:\n  drain_secs: 1\n  listen: 127.0.0.1:1\nuploads:\n  sweep_secs: 1\n")
            .unwrap();
        let environment = environment(&[
            ("TAFFRAIL__SERVER__DRAIN_SECS", "2"),
            ("TAFFRAIL__SERVER__LISTEN", "127.0.0.1:2"),
        ]);
        let mut line = Source::command_line();
        line.push("server.listen", Value::from("127.0.0.1:3"));
        let config = Config::load(Some(&file), &environment, line).unwrap();
        assert_eq!(config.server.listen.port(), 3);
        assert_eq!(config.server.drain_secs, 2);
        assert_eq!(config.uploads.sweep_secs, 1);
        assert_eq!(config.uploads.idle_secs, sections::UPLOAD_IDLE_SECS);
        assert!(config.is_given("uploads.sweep_secs") && !config.is_given("uploads.idle_secs"));
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_known_one() {
        let text = from_yaml("server:\n  lisen: 127.0.0.1:1\n").unwrap_err().to_string();
        assert_eq!(
            text,
            "test.yaml: server.lisen is not a key of the configuration; did you mean server.listen?"
        );
        let text = from_yaml("drain_secs: 3\n").unwrap_err().to_string();
        assert!(text.contains("did you mean server.drain_secs?"), "{text}");
        assert!(matches!(from_yaml("nonsense: 1"), Err(ConfigError::Unknown { suggestion: None, .. })));
        assert!(matches!(from_yaml("server: 1"), Err(ConfigError::Unknown { .. })));
        let mut config = Config::default();
        let error = config.apply(&environment(&[("TAFFRAIL__TLS__MOOD", "off")]).source()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the environment: TAFFRAIL__TLS__MOOD is not a key of the configuration; did you mean tls.mode?"
        );
    }

    #[test]
    fn a_wrong_value_names_its_key_and_what_may_stand_there() {
        let text = from_yaml("server:\n  listen: here\n").unwrap_err().to_string();
        assert!(
            text.starts_with("test.yaml: server.listen: \"here\" is not an IP address and a port"),
            "{text}"
        );
        let text = from_yaml("limits:\n  header_fields_max: 7\n").unwrap_err().to_string();
        assert_eq!(text, "test.yaml: limits.header_fields_max: 7 is not between 8 and 1000");
    }

    #[test]
    fn off_is_a_word_here_and_not_a_boolean() {
        assert_eq!(from_yaml("tls:\n  mode: off\n").unwrap().tls.mode, TlsMode::Off);
        assert_eq!(from_yaml("metrics:\n  listen: off\n").unwrap().metrics.listen, MetricsListen::Off);
    }

    #[test]
    fn plain_http_beyond_loopback_needs_a_word() {
        for address in ["0.0.0.0:5000", "'[::]:5000'", "192.0.2.1:80", "'[::ffff:192.0.2.1]:80'"] {
            let text = format!("listen: {address}\n");
            let error = from_yaml(&text).unwrap_err().to_string();
            assert!(error.contains("insecure_http"), "{error}");
            from_yaml(&format!("{text}insecure_http: true\n")).unwrap();
            from_yaml(&format!("{text}tls:\n  mode: self_signed\n")).unwrap();
        }
        for address in ["127.0.0.5:5000", "'[::1]:5000'"] {
            from_yaml(&format!("server:\n  listen: {address}\n")).unwrap();
        }
    }

    #[test]
    fn metrics_beyond_loopback_need_a_word() {
        assert!(from_yaml("metrics:\n  listen: 0.0.0.0:9000\n").is_err());
        from_yaml("metrics:\n  listen: 0.0.0.0:9000\n  expose: true\n").unwrap();
    }

    #[test]
    fn certificate_files_and_mode_go_together() {
        assert!(from_yaml("tls:\n  mode: files\n  cert_file: a\n").is_err());
        assert!(from_yaml("tls:\n  cert_file: a\n  key_file: b\n").is_err());
        from_yaml("tls:\n  mode: files\n  cert_file: a\n  key_file: b\n").unwrap();
    }

    #[test]
    fn a_shorthand_and_its_key_do_not_stand_together() {
        let both = "listen: 127.0.0.1:1\nserver:\n  listen: 127.0.0.1:2\n";
        assert!(matches!(from_yaml(both), Err(ConfigError::Twice { .. })));
        assert_eq!(from_yaml("listen: 127.0.0.1:1\n").unwrap().server.listen.port(), 1);
    }

    #[test]
    fn what_is_shown_holds_every_value_and_no_secret() {
        let config = from_yaml("bootstrap:\n  admin_password: hunter2\n").unwrap();
        let text = serde_json::to_string(&config.show()).unwrap();
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("\"drain_secs\":30"), "{text}");
    }

    #[test]
    fn every_default_can_be_set_again() {
        let shown = Config::default().show();
        let mut config = Config::default();
        for (section, keys) in shown.as_object().unwrap() {
            for (key, value) in keys.as_object().unwrap() {
                config.set(section, key, value).unwrap_or_else(|error| panic!("{section}.{key}: {error}"));
            }
        }
        assert_eq!(config.show(), shown);
    }
}
