//! Reading a JSON object strictly: every member known, none twice, each of its type, and all that is wrong told at once.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::time::{SPAN_SHAPE, TIME_SHAPE, read_span, read_time};
use crate::error::Violation;
use crate::job::draft::RawSpan;

/// Members of one object that are looked at. No object here has nearly as many.
const MEMBERS_MAX: usize = 200;

/// Letters of a caller's own key that are shown.
const WORD_SHOWN: usize = 128;

/// The members of an object that nobody has asked for yet, and what is wrong with those that were.
pub struct Members<'a> {
    path: String,
    left: BTreeMap<String, &'a RawValue>,
    faults: Vec<Violation>,
}

impl<'a> Members<'a> {
    /// The members of the object `raw` at `path`: "" for the body itself, else it ends with a point.
    pub fn of(raw: &'a RawValue, path: impl Into<String>) -> Self {
        let path = path.into();
        let mut members = Self {
            left: BTreeMap::new(),
            faults: Vec::new(),
            path,
        };
        let Ok(Object { entries, more }) = serde_json::from_str(raw.get()) else {
            members.fault_of_all("must be an object");
            return members;
        };
        let mut twice = BTreeSet::new();
        for (key, value) in entries {
            match members.left.entry(key) {
                Entry::Occupied(known) => {
                    twice.insert(known.key().clone());
                }
                Entry::Vacant(place) => {
                    place.insert(value);
                }
            }
        }
        for key in twice {
            members.fault(&key, "is given twice");
        }
        if more {
            members.fault_of_all(format!("has more than {MEMBERS_MAX} members"));
        }
        members
    }

    /// Notes what is wrong with the object itself.
    pub fn fault_of_all(&mut self, why: impl Into<String>) {
        let name = self.path.strip_suffix('.').unwrap_or("body");
        self.faults.push(Violation::field(name, why));
    }

    /// Notes what is wrong with a member.
    pub fn fault(&mut self, key: &str, why: impl Into<String>) {
        let field = format!("{}{key}", self.path);
        self.faults.push(Violation::field(field, why));
    }

    /// Whether a member is there that nobody has asked for yet, null included.
    pub fn has(&self, key: &str) -> bool {
        self.left.contains_key(key)
    }

    /// A member as it stands, null included.
    pub fn raw(&mut self, key: &str) -> Option<&'a RawValue> {
        self.left.remove(key)
    }

    /// A member that is not null; null means absent, as in proto3 JSON.
    pub fn value(&mut self, key: &str) -> Option<&'a RawValue> {
        self.raw(key).filter(|raw| raw.get() != "null")
    }

    /// A text.
    pub fn text(&mut self, key: &str) -> Option<String> {
        let raw = self.value(key)?;
        self.read(key, text_of(raw), "must be a text")
    }

    /// A whole number from 0, as a number or as a text.
    pub fn number(&mut self, key: &str) -> Option<u32> {
        let raw = self.value(key)?;
        let digits = text_of(raw).unwrap_or_else(|| raw.get().to_owned());
        let shape = "must be a whole number from 0 to 4294967295";
        self.read(key, digits.parse().ok(), shape)
    }

    /// A number, as a number or as a text.
    pub fn real(&mut self, key: &str) -> Option<f64> {
        let raw = self.value(key)?;
        let digits = text_of(raw).unwrap_or_else(|| raw.get().to_owned());
        self.read(key, digits.parse().ok(), "must be a number")
    }

    /// A duration.
    pub fn span(&mut self, key: &str) -> Option<RawSpan> {
        let raw = self.value(key)?;
        let span = text_of(raw).and_then(|text| read_span(&text));
        self.read(key, span, SPAN_SHAPE)
    }

    /// A time.
    pub fn time(&mut self, key: &str) -> Option<RawSpan> {
        let raw = self.value(key)?;
        let time = text_of(raw).and_then(|text| read_time(&text));
        self.read(key, time, TIME_SHAPE)
    }

    /// True or false.
    pub fn flag(&mut self, key: &str) -> Option<bool> {
        let raw = self.value(key)?;
        self.read(key, raw.get().parse().ok(), "must be true or false")
    }

    /// An array of texts.
    pub fn texts(&mut self, key: &str) -> Vec<String> {
        let Some(raw) = self.value(key) else {
            return Vec::new();
        };
        let listed = items(raw, ITEMS_MAX - 1).unwrap_or_else(|why| {
            self.fault(key, why);
            Vec::new()
        });
        let texts: Option<Vec<String>> = listed.into_iter().map(text_of).collect();
        self.read(key, texts, "must be an array of texts")
            .unwrap_or_default()
    }

    /// An object of texts. What is wrong with it is a fault of the whole, as over gRPC, and says which key.
    pub fn words(&mut self, key: &str) -> BTreeMap<String, String> {
        let Some(inner) = self.object(key) else {
            return BTreeMap::new();
        };
        let Members {
            path,
            left,
            mut faults,
        } = inner;
        let mut words = BTreeMap::new();
        for (word, raw) in left {
            match text_of(raw) {
                Some(text) => {
                    words.insert(word, text);
                }
                None => faults.push(Violation::field(format!("{path}{word}"), "must be a text")),
            }
        }
        for Violation { field, why, .. } in faults {
            match field.strip_prefix(&path) {
                Some(word) if !word.is_empty() => {
                    let word: String = word.chars().take(WORD_SHOWN).collect();
                    self.fault(key, format!("at {word:?}: {why}"));
                }
                _ => self.fault(key, why),
            }
        }
        words
    }

    /// An object, read on by the caller and then given to [`Members::close`].
    pub fn object(&mut self, key: &str) -> Option<Members<'a>> {
        let raw = self.value(key)?;
        Some(Members::of(raw, format!("{}{key}.", self.path)))
    }

    /// Takes over what is wrong with an object inside.
    pub fn close(&mut self, inner: Members<'a>) {
        self.faults.extend(inner.end());
    }

    /// The first member, in the order of names, of which `is` holds.
    pub fn find(self, is: impl Fn(&RawValue) -> bool) -> Option<(String, &'a RawValue)> {
        self.left.into_iter().find(|(_, raw)| is(raw))
    }

    /// Everything that was wrong, and each member that nobody asked for.
    pub fn end(mut self) -> Vec<Violation> {
        for key in std::mem::take(&mut self.left).into_keys() {
            self.fault(&key, "is not known");
        }
        self.faults
    }

    fn read<T>(&mut self, key: &str, value: Option<T>, shape: &str) -> Option<T> {
        if value.is_none() {
            self.fault(key, shape);
        }
        value
    }
}

/// The items of an array, if it is one with at most `max`.
pub fn items(raw: &RawValue, max: usize) -> Result<Vec<&RawValue>, String> {
    match serde_json::from_str::<Array<'_>>(raw.get()) {
        Err(_) => Err("must be an array".into()),
        Ok(Array { items, .. }) if items.len() > max => Err(format!("has more than {max} entries")),
        Ok(Array { items, more: true }) => Err(format!("has more than {} entries", items.len())),
        Ok(Array { items, .. }) => Ok(items),
    }
}

/// The text that a JSON string stands for; `None` for another value, or when it is no text (a lone surrogate).
fn text_of(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

/// An object as it stands. Reading goes on to its end, but no more than [`MEMBERS_MAX`] entries are kept.
struct Object<'a> {
    entries: Vec<(String, &'a RawValue)>,
    more: bool,
}

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                let mut more = false;
                while let Some(entry) = map.next_entry()? {
                    match entries.len() < MEMBERS_MAX {
                        true => entries.push(entry),
                        false => more = true,
                    }
                }
                Ok(Object { entries, more })
            }
        }
        from.deserialize_map(Entries)
    }
}

/// An array as it stands, bounded like [`Object`].
struct Array<'a> {
    items: Vec<&'a RawValue>,
    more: bool,
}

/// Items of one array that are kept: a full batch, and one more to know that there are too many.
const ITEMS_MAX: usize = crate::job::limits::BATCH_MAX + 1;

impl<'de> Deserialize<'de> for Array<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Items;
        impl<'de> Visitor<'de> for Items {
            type Value = Array<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                let mut more = false;
                while let Some(item) = seq.next_element()? {
                    match items.len() < ITEMS_MAX {
                        true => items.push(item),
                        false => more = true,
                    }
                }
                Ok(Array { items, more })
            }
        }
        from.deserialize_seq(Items)
    }
}
