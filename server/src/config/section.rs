//! What a section of the configuration is: a struct whose fields carry their key, kind, bounds, default and text.
//!
//! One `section!` states all five, so that the struct, its defaults, the checks and the reference page cannot disagree.
//! What must stay true: [`Section::set`] is the only way in, and it refuses what is unknown, of the wrong kind or out of
//! bounds.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde_json::Value;

/// One key, as the reference page shows it.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    /// Its name inside the section.
    pub(crate) name: &'static str,
    /// What may stand there, in words.
    pub(crate) kind: String,
    /// The smallest and the largest number, where it is one.
    pub(crate) bounds: Option<RangeInclusive<u64>>,
    /// What holds when nobody sets it.
    pub(crate) default: Value,
    /// Its doc comment, line by line.
    pub(crate) doc: &'static [&'static str],
}

/// Why a value was refused. The text completes "`section.key`: ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SetError {
    /// The section has no such key.
    #[error("there is no such key")]
    Unknown,
    /// Not what may stand there.
    #[error("{found} is not {wanted}")]
    Kind {
        /// What stood there.
        found: String,
        /// What may stand there.
        wanted: String,
    },
    /// A number out of bounds.
    #[error("{found} is not between {min} and {max}")]
    Bounds {
        /// The number.
        found: u64,
        /// The smallest.
        min: u64,
        /// The largest.
        max: u64,
    },
}

/// A struct made by `section!`.
pub(crate) trait Section: Default {
    /// Its doc comment, line by line.
    const ABOUT: &'static [&'static str];

    /// Its keys in the order they were written.
    fn keys() -> Vec<Key>;

    /// Sets one key.
    ///
    /// # Errors
    /// See [`SetError`].
    fn set(&mut self, key: &str, value: &Value) -> Result<(), SetError>;

    /// Every key with its value; secrets are masked.
    fn show(&self) -> serde_json::Map<String, Value>;
}

/// Something that can stand behind a key.
pub(crate) trait Setting: Sized {
    /// What may stand there, in words: "an integer", "`text` or `json`".
    fn kind() -> String;

    /// Takes what a file or the environment says.
    fn parse(value: &Value) -> Option<Self>;

    /// What `config show` prints.
    fn show(&self) -> Value;
}

/// The text of a value in an error: what the operator wrote.
fn found(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Null => "nothing".to_owned(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a section".to_owned(),
    }
}

/// Parses a value and holds it against its bounds.
pub(crate) fn parse_setting<T: Setting>(
    value: &Value,
    bounds: Option<RangeInclusive<u64>>,
) -> Result<T, SetError> {
    let parsed = T::parse(value).ok_or_else(|| SetError::Kind { found: found(value), wanted: T::kind() })?;
    if let (Some(bounds), Some(number)) = (bounds, parsed.show().as_u64())
        && !bounds.contains(&number)
    {
        return Err(SetError::Bounds { found: number, min: *bounds.start(), max: *bounds.end() });
    }
    Ok(parsed)
}

macro_rules! section {
    (
        $(#[doc = $about:literal])*
        struct $name:ident {
            $(
                $(#[doc = $doc:literal])*
                $field:ident : $type:ty $([$bounds:expr])? = $default:expr
            ),* $(,)?
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone)]
        pub(crate) struct $name {
            $( $(#[doc = $doc])* pub(crate) $field: $type, )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        impl $crate::config::section::Section for $name {
            const ABOUT: &'static [&'static str] = &[$($about),*];

            fn keys() -> Vec<$crate::config::section::Key> {
                let defaults = Self::default();
                vec![$(
                    $crate::config::section::Key {
                        name: stringify!($field),
                        kind: <$type as $crate::config::section::Setting>::kind(),
                        bounds: section!(@bounds $($bounds)?),
                        default: $crate::config::section::Setting::show(&defaults.$field),
                        doc: &[$($doc),*],
                    },
                )*]
            }

            fn set(
                &mut self,
                key: &str,
                value: &serde_json::Value,
            ) -> Result<(), $crate::config::section::SetError> {
                match key {
                    $(
                        stringify!($field) => {
                            self.$field =
                                $crate::config::section::parse_setting(value, section!(@bounds $($bounds)?))?;
                            Ok(())
                        }
                    )*
                    _ => Err($crate::config::section::SetError::Unknown),
                }
            }

            fn show(&self) -> serde_json::Map<String, serde_json::Value> {
                let mut map = serde_json::Map::new();
                $(
                    map.insert(
                        stringify!($field).to_owned(),
                        $crate::config::section::Setting::show(&self.$field),
                    );
                )*
                map
            }
        }
    };
    (@bounds) => { None };
    (@bounds $bounds:expr) => { Some($bounds) };
}
pub(crate) use section;

impl Setting for u64 {
    fn kind() -> String {
        "an integer".to_owned()
    }

    fn parse(value: &Value) -> Option<Self> {
        match value {
            // `64_MiB` and the like are not taken: the unit is in the key's name, and one notation is enough.
            Value::String(text) => text.parse().ok(),
            Value::Number(number) => number.as_u64(),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        }
    }

    fn show(&self) -> Value {
        Value::from(*self)
    }
}

impl Setting for bool {
    fn kind() -> String {
        "`true` or `false`".to_owned()
    }

    fn parse(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => text.parse().ok(),
            Value::Bool(value) => Some(*value),
            Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_) => None,
        }
    }

    fn show(&self) -> Value {
        Value::from(*self)
    }
}

impl Setting for PathBuf {
    fn kind() -> String {
        "a path".to_owned()
    }

    fn parse(value: &Value) -> Option<Self> {
        value.as_str().filter(|text| !text.is_empty()).map(PathBuf::from)
    }

    fn show(&self) -> Value {
        Value::from(self.to_string_lossy().into_owned())
    }
}

impl Setting for SocketAddr {
    fn kind() -> String {
        "an IP address and a port, such as `127.0.0.1:5000` or `[::]:443`".to_owned()
    }

    fn parse(value: &Value) -> Option<Self> {
        value.as_str()?.parse().ok()
    }

    fn show(&self) -> Value {
        Value::from(self.to_string())
    }
}

impl<T: Setting> Setting for Option<T> {
    fn kind() -> String {
        format!("{}, or nothing", T::kind())
    }

    fn parse(value: &Value) -> Option<Self> {
        match value {
            Value::Null => Some(None),
            Value::String(text) if text.is_empty() => Some(None),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
                T::parse(value).map(Some)
            }
        }
    }

    fn show(&self) -> Value {
        self.as_ref().map_or(Value::Null, Setting::show)
    }
}

impl<T: Setting> Setting for Vec<T> {
    fn kind() -> String {
        format!("a list, each {}", T::kind())
    }

    fn parse(value: &Value) -> Option<Self> {
        match value {
            Value::Null => Some(Vec::new()),
            Value::Array(items) => items.iter().map(T::parse).collect(),
            // The environment has no lists: commas divide there.
            Value::String(text) => text
                .split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty())
                .map(|part| T::parse(&Value::from(part)))
                .collect(),
            Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
        }
    }

    fn show(&self) -> Value {
        Value::Array(self.iter().map(Setting::show).collect())
    }
}

/// A text that must not be printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    /// The text itself. Not for logs.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(masked)")
    }
}

impl Setting for Secret {
    fn kind() -> String {
        "a secret text".to_owned()
    }

    fn parse(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Some(Self(text.clone())),
            // A password of digits alone is read as a number by YAML.
            Value::Number(number) => Some(Self(number.to_string())),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        }
    }

    fn show(&self) -> Value {
        Value::from("********")
    }
}

/// A setting that is one of a few words. `off` may also be written as YAML 1.1 reads it, the boolean false.
macro_rules! choice {
    ($(#[$meta:meta])* enum $name:ident { $( $(#[$vmeta:meta])* $variant:ident = $word:literal ),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum $name { $( $(#[$vmeta])* $variant ),* }

        impl $name {
            /// The word in the file.
            pub(crate) const fn word(self) -> &'static str {
                match self { $( Self::$variant => $word ),* }
            }
        }

        impl $crate::config::section::Setting for $name {
            fn kind() -> String {
                [$( concat!("`", $word, "`") ),*].join(" or ")
            }

            fn parse(value: &serde_json::Value) -> Option<Self> {
                let text = match value {
                    serde_json::Value::Bool(false) => "off",
                    _ => value.as_str()?,
                };
                match text {
                    $( $word => Some(Self::$variant), )*
                    _ => None,
                }
            }

            fn show(&self) -> serde_json::Value {
                serde_json::Value::from(self.word())
            }
        }
    };
}
pub(crate) use choice;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    section! {
        /// A section for these tests.
        struct Sample {
            /// How many.
            count: u64 [1..=10] = 3,
            /// A word.
            word: Option<Secret> = None,
            /// Ports.
            ports: Vec<u64> = vec![1, 2],
        }
    }

    #[test]
    fn a_key_out_of_its_bounds_is_refused_and_one_inside_is_taken() {
        let mut sample = Sample::default();
        assert_eq!(sample.set("count", &json!(11)), Err(SetError::Bounds { found: 11, min: 1, max: 10 }));
        sample.set("count", &json!(10)).unwrap();
        sample.set("count", &json!("1")).unwrap();
        assert_eq!(sample.count, 1);
        assert!(matches!(sample.set("count", &json!(0)), Err(SetError::Bounds { .. })));
        assert!(matches!(sample.set("count", &json!("1 MiB")), Err(SetError::Kind { .. })));
        assert_eq!(sample.set("cuont", &json!(1)), Err(SetError::Unknown));
    }

    #[test]
    fn a_secret_is_never_shown() {
        let mut sample = Sample::default();
        sample.set("word", &json!("hunter2")).unwrap();
        assert_eq!(sample.word.as_ref().unwrap().expose(), "hunter2");
        assert!(!format!("{:?} {:?}", sample, Value::Object(sample.show())).contains("hunter2"));
    }

    #[test]
    fn the_environment_writes_a_list_with_commas() {
        let mut sample = Sample::default();
        sample.set("ports", &json!("7, 8")).unwrap();
        assert_eq!(sample.ports, [7, 8]);
    }

    #[test]
    fn the_reference_carries_default_bounds_and_text() {
        let keys = Sample::keys();
        assert_eq!((keys[0].name, keys[0].default.clone()), ("count", json!(3)));
        assert_eq!(keys[0].bounds, Some(1..=10));
        assert_eq!(keys[0].doc, [" How many."]);
        assert_eq!(keys[1].bounds, None);
    }
}
