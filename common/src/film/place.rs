//! On which line of a YAML text something stands.

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// One step on the way from the whole text to a part of it.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// The value of this key; as the last step, the key.
    Key(&'a str),
    /// The item of this number, from 0.
    Index(usize),
}

/// The line, from 1, on which the part at the end of `steps` begins; 1 when there is no such part.
pub fn line(text: &str, steps: &[Step<'_>]) -> usize {
    let found = Search(steps).deserialize(serde_yaml_ng::Deserializer::from_str(text));
    let place = found.err().and_then(|error| error.location());
    place.map_or(1, |place| place.line())
}

/// Fails at the part that is looked for: the reader says where it failed.
#[derive(Clone, Copy)]
struct Search<'a>(&'a [Step<'a>]);

impl<'de> DeserializeSeed<'de> for Search<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Search<'_> {
    /// Fails here when there is no further to go.
    fn stop<E: Error>(self) -> Result<(), E> {
        match self.0 {
            [] => Err(E::custom("here")),
            _ => Ok(()),
        }
    }
}

/// Reads a key: whether it is the one on the way. Fails at the one where the way ends.
#[derive(Clone, Copy)]
struct Key<'a> {
    wanted: Option<&'a str>,
    last: Option<&'a str>,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<bool, E> {
        if self.last == Some(key) {
            return Err(E::custom("here"));
        }
        Ok(self.wanted == Some(key))
    }
}

impl<'de> Visitor<'de> for Search<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.stop()?;
        let (wanted, rest) = match self.0 {
            [Step::Key(wanted), rest @ ..] => (Some(*wanted), rest),
            _ => (None, &[][..]),
        };
        let last = wanted.filter(|_| rest.is_empty());
        while let Some(is_on_the_way) = map.next_key_seed(Key { wanted, last })? {
            if is_on_the_way {
                map.next_value_seed(Search(rest))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        self.stop()?;
        for index in 0.. {
            let is_there = match self.0 {
                [Step::Index(wanted), rest @ ..] if index == *wanted => {
                    items.next_element_seed(Search(rest))?.is_some()
                }
                _ => items.next_element::<IgnoredAny>()?.is_some(),
            };
            if !is_there {
                break;
            }
        }
        Ok(())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.stop()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.stop()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.stop()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.stop()
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        self.stop()
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.stop()
    }
}
