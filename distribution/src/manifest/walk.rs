//! The first pass over a manifest: is it JSON that every parser reads alike, and small enough to read at all?
//!
//! It refuses what parsers disagree on: a key twice in one object, numbers beyond the range of a double, lone surrogates,
//! a byte order mark, anything behind the end. Memory: the keys of the objects that are open, at most
//! [`VALUES_MAX`] of them.

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};

/// Objects and arrays inside each other. A manifest of OCI has 5.
pub(super) const DEPTH_MAX: usize = 32;

/// Values in a document. A manifest of 4 MiB full of descriptors has about 150,000.
pub(super) const VALUES_MAX: usize = 262_144;

/// Below this number of keys a search through a list is quicker than hashing.
const KEYS_IN_A_LIST_MAX: usize = 16;

/// Checks a document.
pub(super) fn check(bytes: &[u8]) -> Result<(), serde_json::Error> {
    let values = Cell::new(0);
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    Walk { depth: 0, values: &values }.deserialize(&mut deserializer)?;
    deserializer.end()
}

#[derive(Clone, Copy)]
struct Walk<'a> {
    depth: usize,
    values: &'a Cell<usize>,
}

impl Walk<'_> {
    fn inner<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth == DEPTH_MAX {
            return Err(E::custom(format_args!("nested deeper than {DEPTH_MAX}")));
        }
        Ok(Walk { depth: self.depth + 1, values: self.values })
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let values = self.values.get() + 1;
        if values > VALUES_MAX {
            return Err(D::Error::custom(format_args!("more than {VALUES_MAX} values")));
        }
        self.values.set(values);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        let inner = self.inner()?;
        while sequence.next_element_seed(inner)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let inner = self.inner()?;
        let mut keys = Keys::List(Vec::new());
        while let Some(key) = map.next_key::<String>()? {
            if !keys.insert(key) {
                return Err(A::Error::custom("a key occurs twice in one object"));
            }
            map.next_value_seed(inner)?;
        }
        Ok(())
    }
}

enum Keys {
    List(Vec<String>),
    Set(HashSet<String>),
}

impl Keys {
    /// Whether it is new.
    fn insert(&mut self, key: String) -> bool {
        match self {
            Keys::List(list) if list.contains(&key) => false,
            Keys::List(list) if list.len() < KEYS_IN_A_LIST_MAX => {
                list.push(key);
                true
            }
            Keys::List(list) => {
                let mut set: HashSet<String> = std::mem::take(list).into_iter().collect();
                let new = set.insert(key);
                *self = Keys::Set(set);
                new
            }
            Keys::Set(set) => set.insert(key),
        }
    }
}
