//! Names and ids: parsed once at the edge, valid ever after.

use std::{fmt, sync::Arc};

use uuid::Uuid;

use super::limits::{NAME_BYTES_MAX, WORD_BYTES_MAX};
use super::time::Timestamp;

/// Identity of a job: a UUIDv7, so that ids sort by the time they were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(Uuid);

impl JobId {
    /// Reads the 36-character form of a UUIDv7; anything else is `None`.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 36 {
            return None;
        }
        Self::new(Uuid::try_parse(text).ok()?)
    }

    /// Takes a UUID if it is of version 7.
    pub fn new(id: Uuid) -> Option<Self> {
        (id.get_version_num() == 7 && id.get_variant() == uuid::Variant::RFC4122)
            .then_some(Self(id))
    }

    /// Takes a UUID that the store gives back; it was checked on its way in.
    pub fn from_store(id: Uuid) -> Self {
        Self(id)
    }

    /// A bound for lists: no id that carries this time or a later one is below it.
    pub fn earliest(time: Timestamp) -> Self {
        let millis = u128::try_from(time.0 / 1_000).unwrap_or(0);
        Self(Uuid::from_u128(millis << 80))
    }

    /// The UUID itself.
    pub fn uuid(self) -> Uuid {
        self.0
    }

    /// The time that the id carries, to the millisecond.
    pub fn time(self) -> Timestamp {
        let millis = self.0.as_u128() >> 80;
        Timestamp(
            i64::try_from(millis)
                .unwrap_or(i64::MAX)
                .saturating_mul(1_000),
        )
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// Identity of a session: the first 16 bytes of the SHA-256 of its resume token, so that no row, page or log ever
/// holds the token itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(Uuid);

impl SessionId {
    /// The session that a resume token opens.
    pub fn of_token(token: &[u8]) -> Self {
        use sha2::Digest;
        let digest: [u8; 32] = sha2::Sha256::digest(token).into();
        let mut half = [0; 16];
        half.copy_from_slice(&digest[..16]);
        Self(Uuid::from_bytes(half))
    }

    /// Reads the 32 hexadecimal digits that it is shown as; anything else is `None`.
    pub fn parse(text: &str) -> Option<Self> {
        simple(text).map(Self)
    }

    /// Takes an id that the store gives back.
    pub fn from_store(id: Uuid) -> Self {
        Self(id)
    }

    /// The 16 bytes, in the shape that the databases have a type for.
    pub fn uuid(self) -> Uuid {
        self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

/// Identity of a server node: random, made anew at each start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub Uuid);

impl NodeId {
    /// Reads the 32 hexadecimal digits that it is shown as; anything else is `None`.
    pub fn parse(text: &str) -> Option<Self> {
        simple(text).map(Self)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

/// A UUID of 32 hexadecimal digits.
fn simple(text: &str) -> Option<Uuid> {
    let is_shape = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    is_shape.then(|| Uuid::try_parse(text).ok())?
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes `[A-Za-z0-9_.:-]{1,128}`; anything else is `None`.
            pub fn parse(text: &str) -> Option<Self> {
                is_name(text).then(|| Self(text.into()))
            }

            /// Takes a name that the store gives back; it was checked on its way in.
            pub fn from_store(text: &str) -> Self {
                Self(text.into())
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

name! {
    /// Name of a queue.
    QueueName
}
name! {
    /// Which handler runs a job.
    Kind
}

macro_rules! key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes 1 to 255 bytes without U+0000; anything else is `None`.
            pub fn parse(text: &str) -> Option<Self> {
                let fits = (1..=WORD_BYTES_MAX).contains(&text.len()) && !text.contains('\0');
                fits.then(|| Self(text.into()))
            }

            /// Takes a key that the store gives back; it was checked on its way in.
            pub fn from_store(text: &str) -> Self {
                Self(text.into())
            }

            /// The key as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
    };
}

key! {
    /// What a request is about, in its caller's words: within a queue it has one job, however often it is made.
    IdempotencyKey
}
key! {
    /// What a job works on, in its caller's words: within a queue at most one job that is not final has it.
    UniqueKey
}

/// What the id of a session or a node must look like, for messages.
pub const ID_SHAPE: &str = "must be 32 hexadecimal digits";
/// What a name must look like, for messages.
pub const NAME_SHAPE: &str = "[A-Za-z0-9_.:-]{1,128}";

fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.:-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_short_and_plain() {
        assert!(QueueName::parse("emails:eu.1_a-b").is_some());
        for bad in ["", " ", "a b", "ä", "a/b", "a\0", &"x".repeat(129)] {
            assert!(QueueName::parse(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn a_session_is_read_as_it_is_shown() {
        let session = SessionId::of_token(b"token");
        assert_eq!(SessionId::parse(&session.to_string()), Some(session));
        let hyphenated = session.uuid().hyphenated().to_string();
        for bad in ["", "x", &hyphenated, &session.to_string()[1..]] {
            assert!(SessionId::parse(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn only_a_uuid_of_version_7_in_its_usual_form_is_a_job_id() {
        let id = "01890a5d-ac96-774b-bcce-b302099a8057";
        assert_eq!(JobId::parse(id).map(|i| i.to_string()).as_deref(), Some(id));
        assert_eq!(
            JobId::parse(id).map(|i| i.time()),
            Some(Timestamp(1_688_096_058_518_000))
        );
        for bad in [
            "",
            "01890a5dac96774bbcceb302099a8057",
            "{01890a5d-ac96-774b-bcce-b302099a8057}",
            "f47ac10b-58cc-4372-a567-0e02b2c3d479",
            "00000000-0000-0000-0000-000000000000",
        ] {
            assert!(JobId::parse(bad).is_none(), "{bad:?}");
        }
    }
}
