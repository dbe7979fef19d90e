//! Where values come from: a YAML file, the environment, the command line. Each becomes a flat list of `section.key`.
//!
//! What must stay true: nothing of a source is dropped silently. What has no place in the configuration stays in the list
//! and is refused by [`super::Config`].

use std::path::Path;

use serde_json::Value;

use super::ConfigError;

/// Prefix of the environment variables that are configuration.
const PREFIX: &str = "TAFFRAIL__";
/// The one variable with a name of its own, because it is the one that everybody sets.
const ADMIN_PASSWORD: &str = "TAFFRAIL_ADMIN_PASSWORD";
/// Largest configuration file in bytes. Ours have a few hundred; a wrong path must not fill the memory.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// One value of a source.
#[derive(Debug)]
pub(crate) struct Entry {
    /// `section.key`, or a key alone.
    pub(crate) key: String,
    /// The key as the operator wrote it, for messages.
    pub(crate) written: String,
    /// The value.
    pub(crate) value: Value,
}

/// One source of values.
#[derive(Debug)]
pub(crate) struct Source {
    /// Its name in messages.
    pub(crate) from: String,
    /// Its values.
    pub(crate) entries: Vec<Entry>,
}

impl Source {
    /// The values of a file.
    ///
    /// # Errors
    /// `Read`, `Syntax`.
    pub(crate) fn file(path: &Path) -> Result<Self, ConfigError> {
        let shown = path.display().to_string();
        let read = || {
            let length = std::fs::metadata(path)?.len();
            if length > FILE_BYTES_MAX {
                return Err(std::io::Error::other(format!(
                    "it has {length} bytes; {FILE_BYTES_MAX} are allowed"
                )));
            }
            std::fs::read_to_string(path)
        };
        let text = read().map_err(|source| ConfigError::Read { path: shown.clone(), source })?;
        Self::yaml(&shown, &text)
    }

    /// The values of a YAML text.
    ///
    /// # Errors
    /// `Syntax`.
    pub(crate) fn yaml(from: &str, text: &str) -> Result<Self, ConfigError> {
        let syntax = |message: String| ConfigError::Syntax { path: from.to_owned(), message };
        // An empty file, or one of comments only, is a configuration too.
        let parsed: Option<Value> =
            serde_saphyr::from_str(text).map_err(|error| syntax(error.without_snippet().to_string()))?;
        let sections = match parsed {
            None | Some(Value::Null) => serde_json::Map::new(),
            Some(Value::Object(map)) => map,
            Some(_) => return Err(syntax("it must be a mapping of sections".to_owned())),
        };
        let mut source = Self { from: from.to_owned(), entries: Vec::new() };
        for (section, value) in sections {
            match value {
                Value::Object(keys) => {
                    for (key, value) in keys {
                        source.push(&format!("{section}.{key}"), value);
                    }
                }
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                    source.push(&section, value);
                }
            }
        }
        // A section whose keys are all commented out is null.
        source.entries.retain(|entry| {
            !(entry.value.is_null() && super::Config::sections().iter().any(|(name, ..)| *name == entry.key))
        });
        Ok(source)
    }

    /// A command line without values yet.
    pub(crate) fn command_line() -> Self {
        Self { from: "the command line".to_owned(), entries: Vec::new() }
    }

    /// Adds one value.
    pub(crate) fn push(&mut self, key: &str, value: Value) {
        self.entries.push(Entry { key: key.to_owned(), written: key.to_owned(), value });
    }
}

/// The part of the process environment that concerns us.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment {
    variables: Vec<(String, String)>,
}

impl Environment {
    /// Reads the environment of this process.
    pub(crate) fn of_process() -> Self {
        // Not `vars()`: that panics on a variable, ours or not, that is no UTF-8.
        Self::from_pairs(
            std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
        )
    }

    /// Keeps what concerns us of the given variables.
    pub(crate) fn from_pairs(pairs: impl Iterator<Item = (String, String)>) -> Self {
        let mut variables: Vec<_> =
            pairs.filter(|(name, _)| name.starts_with(PREFIX) || name == ADMIN_PASSWORD).collect();
        variables.sort();
        Self { variables }
    }

    /// Its values.
    pub(crate) fn source(&self) -> Source {
        let entries = self
            .variables
            .iter()
            .map(|(name, value)| Entry {
                key: match name.strip_prefix(PREFIX) {
                    Some(path) => path.to_ascii_lowercase().replace("__", "."),
                    None => "bootstrap.admin_password".to_owned(),
                },
                written: name.clone(),
                value: Value::from(value.clone()),
            })
            .collect();
        Source { from: "the environment".to_owned(), entries }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_and_an_empty_section_are_no_values() {
        assert!(Source::yaml("f", "").unwrap().entries.is_empty());
        assert!(Source::yaml("f", "# nothing\n").unwrap().entries.is_empty());
        assert!(Source::yaml("f", "server:\n  # listen: x\ntls:\n").unwrap().entries.is_empty());
    }

    #[test]
    fn what_is_no_mapping_is_refused() {
        for text in ["- a\n", "text\n", "a: [\n", "server:\n\tlisten: x\n"] {
            assert!(matches!(Source::yaml("f", text), Err(ConfigError::Syntax { .. })), "{text:?}");
        }
    }

    #[test]
    fn a_key_given_twice_in_one_section_is_refused() {
        assert!(Source::yaml("f", "server:\n  listen: a\n  listen: b\n").is_err());
    }

    #[test]
    fn only_our_variables_are_looked_at() {
        let pairs = [("PATH", "/bin"), ("TAFFRAIL__LOG__LEVEL", "debug"), ("TAFFRAIL_ADMIN_PASSWORD", "x")];
        let environment =
            Environment::from_pairs(pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())));
        let keys: Vec<_> = environment.source().entries.into_iter().map(|entry| entry.key).collect();
        assert_eq!(keys, ["bootstrap.admin_password", "log.level"]);
    }
}
