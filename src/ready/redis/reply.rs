//! What Redis answers, read with distrust: an answer of another shape is no answer, never a panic.

use redis::Value;
use uuid::Uuid;

use super::away;
use crate::error::Result;
use crate::job::JobId;
use crate::store::EntryId;

/// What was taken of an entry.
#[derive(Debug)]
pub(super) struct Part {
    pub place: EntryId,
    /// It was found below the highest level first.
    pub early: bool,
    pub whose: Whose,
    /// The numbers of the ids in the entry, and the jobs.
    pub jobs: Vec<(u8, JobId)>,
}

/// Whose an entry is of which something was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// The taker has all of it.
    Whole,
    /// The taker has what was left of it.
    Own,
    /// It is on the shelf for its rest.
    Shelf,
}

/// What an error of the server means to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The stream or its group is not there, or the key is something else.
    Gone,
    /// The group is there already.
    Exists,
    /// Anything else: out of memory, read only, loading, no permission.
    Other,
}

/// The error that an answer is, if it is one.
pub(super) fn fault(answer: &Value) -> Option<Fault> {
    let Value::ServerError(error) = answer else {
        return None;
    };
    let no_key = || {
        error
            .details()
            .is_some_and(|details| details.contains("no such key"))
    };
    Some(match error.code() {
        "NOGROUP" | "WRONGTYPE" => Fault::Gone,
        "BUSYGROUP" => Fault::Exists,
        "ERR" | "ResponseError" if no_key() => Fault::Gone,
        _ => Fault::Other,
    })
}

/// Whether the server answers nothing before it has a password.
pub(super) fn wants_password(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(error) if error.code() == "NOAUTH")
}

/// Whether the server does not know a script yet.
pub(super) fn is_unknown_script(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(error) if error.code() == "NOSCRIPT")
}

/// Whether this user may not do it.
pub(super) fn is_forbidden(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(error) if error.code() == "NOPERM")
}

/// Fails for any error but the ones that mean that something is gone.
pub(super) fn refuse_other(answer: &Value) -> Result<()> {
    match fault(answer) {
        Some(Fault::Other) => {
            tracing::debug!(?answer, "redis: refused");
            Err(away())
        }
        _ => Ok(()),
    }
}

/// The answers inside the answer to EXEC.
pub(super) fn transaction(answer: Option<Value>) -> Result<Vec<Value>> {
    match answer {
        Some(Value::Array(answers)) => Ok(answers),
        answer => {
            tracing::debug!(?answer, "redis: transaction refused");
            Err(away())
        }
    }
}

/// The bytes of a string; `None` for anything else.
pub(super) fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text.as_bytes()),
        _ => None,
    }
}

/// The text of a string.
pub(super) fn text(value: &Value) -> Option<&str> {
    std::str::from_utf8(bytes(value)?).ok()
}

/// An entry's place, `ms-seq`.
pub(super) fn entry_id(value: &Value) -> Option<EntryId> {
    place_of(text(value)?)
}

fn place_of(text: &str) -> Option<EntryId> {
    let (ms, seq) = text.split_once('-')?;
    Some(EntryId {
        ms: ms.parse().ok()?,
        seq: seq.parse().ok()?,
    })
}

/// How Redis writes a place.
pub(super) fn written(entry: EntryId) -> String {
    format!("{}-{}", entry.ms, entry.seq)
}

/// What a list holds; nothing for anything else.
pub(super) fn items(value: &Value) -> &[Value] {
    match value {
        Value::Array(items) | Value::Set(items) => items,
        _ => &[],
    }
}

/// The value of a name in a map, or in the list of pairs that older protocols send.
pub(super) fn named<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    match value {
        Value::Map(pairs) => pairs
            .iter()
            .find(|(key, _)| text(key) == Some(name))
            .map(|(_, value)| value),
        _ => items(value).chunks_exact(2).find_map(|pair| match pair {
            [key, value] if text(key) == Some(name) => Some(value),
            _ => None,
        }),
    }
}

/// The streams of an XREAD or XREADGROUP: name and entries.
pub(super) fn streams(value: &Value) -> Vec<(&Value, &Value)> {
    match value {
        Value::Map(pairs) => pairs.iter().map(|(name, list)| (name, list)).collect(),
        _ => items(value)
            .iter()
            .filter_map(|stream| match items(stream) {
                [name, list] => Some((name, list)),
                _ => None,
            })
            .collect(),
    }
}

/// The parts of entries that a script wrote one after the other, as `entries.lua` says. `None`: it is no such text.
pub(super) fn parts(text: &Value) -> Option<Vec<Part>> {
    let mut rest = bytes(text)?;
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| matches!(byte, b'=' | b'<'))?;
        let (place, head) = rest.split_at_checked(end)?;
        let ([mark, whose, count], ids) = head.split_first_chunk()?;
        let whose = match whose {
            b'w' => Whose::Whole,
            b'o' => Whose::Own,
            b's' => Whose::Shelf,
            _ => return None,
        };
        let size = 16 + usize::from(whose != Whose::Whole);
        let count = usize::from(count.checked_sub(b'@')?);
        let (ids, after) = ids.split_at_checked(size * count)?;
        let mut jobs = Vec::with_capacity(count);
        for (at, id) in (0..).zip(ids.chunks_exact(size)) {
            let (number, id) = id.split_at_checked(size - 16)?;
            let number = match number.first() {
                Some(letter) => letter.checked_sub(b'A')?,
                None => at,
            };
            jobs.push((number, JobId::from_store(Uuid::from_slice(id).ok()?)));
        }
        parts.push(Part {
            place: place_of(std::str::from_utf8(place).ok()?)?,
            early: *mark == b'<',
            whose,
            jobs,
        });
        rest = after;
    }
    Some(parts)
}
