//! A request for a page of a list that has no filter, or a plain one: its size and its token, judged in one place for all
//! faces. A token is good for the list that it comes from, and says where the next page begins.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::job::limits::{PAGE_DEFAULT, PAGE_MAX};

/// Bytes that tell the lists apart.
const MARK_BYTES: usize = 8;

/// What a face has read.
#[derive(Debug, Clone, Default)]
pub struct RawCursor {
    /// 0: the default. More than the most is taken as the most.
    pub size: u32,
    /// Of the page before, or empty.
    pub token: String,
}

/// A page that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    /// At most as many as were asked for, perhaps fewer, even when there are more.
    pub items: Vec<T>,
    /// Of the page that goes on; empty: there is no more.
    pub next_page_token: String,
}

/// A list, by its name and what it is narrowed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed<'a> {
    /// Of what.
    pub name: &'a str,
    /// Of which of them; empty: of all.
    pub filter: &'a str,
}

impl Listed<'_> {
    /// All queues.
    pub const QUEUES: Listed<'static> = Listed {
        name: "queues",
        filter: "",
    };
    /// All nodes.
    pub const NODES: Listed<'static> = Listed {
        name: "nodes",
        filter: "",
    };
    /// All bulks.
    pub const BULKS: Listed<'static> = Listed {
        name: "bulks",
        filter: "",
    };
    /// All that was changed by hand.
    pub const AUDIT: Listed<'static> = Listed {
        name: "audit",
        filter: "",
    };

    /// A page of those that were `found`, which are one more than its size if there are more. `place` is where one stands.
    pub fn cut<T, P: AsRef<[u8]>>(
        self,
        mut found: Vec<T>,
        size: usize,
        place: impl Fn(&T) -> P,
    ) -> Page<T> {
        let is_more = found.len() > size;
        found.truncate(size);
        let last = found.last().filter(|_| is_more);
        Page {
            next_page_token: last
                .map(|last| self.write(place(last).as_ref()))
                .unwrap_or_default(),
            items: found,
        }
    }

    /// A page that the store has cut, which ends at `next`.
    pub fn of<T>(self, items: Vec<T>, next: Option<&[u8]>) -> Page<T> {
        Page {
            items,
            next_page_token: next.map(|place| self.write(place)).unwrap_or_default(),
        }
    }

    /// The token of the page that goes on after `place`.
    fn write(self, place: &[u8]) -> String {
        let mut bytes = self.mark().to_vec();
        bytes.extend_from_slice(place);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads how many things a page is to have at most, and after which place it begins, as `read` finds that.
    ///
    /// # Errors
    /// `InvalidArgument` for a token that is not of this list.
    pub fn page<T>(
        self,
        raw: &RawCursor,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<(usize, Option<T>)> {
        let size = match raw.size {
            0 => PAGE_DEFAULT,
            size => usize::try_from(size).unwrap_or(PAGE_MAX).min(PAGE_MAX),
        };
        if raw.token.is_empty() {
            return Ok((size, None));
        }
        let bytes = URL_SAFE_NO_PAD.decode(&raw.token).unwrap_or_default();
        let place = bytes.strip_prefix(&self.mark()).and_then(read);
        match place {
            Some(place) => Ok((size, Some(place))),
            None => Err(Error::field(
                "page_token",
                "must be the next_page_token of a page of the same list",
            )),
        }
    }

    fn mark(self) -> [u8; MARK_BYTES] {
        let text = format!("{:?}{:?}", self.name, self.filter);
        let hash: [u8; 32] = Sha256::digest(text).into();
        let mut mark = [0; MARK_BYTES];
        mark.copy_from_slice(&hash[..MARK_BYTES]);
        mark
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_whether_there_is_more() {
        let cut = |found: usize| {
            let page = Listed::QUEUES.cut((0..found).collect(), 2, |n| [*n as u8]);
            (page.items.len(), !page.next_page_token.is_empty())
        };
        assert_eq!(
            [cut(0), cut(2), cut(3)],
            [(0, false), (2, false), (2, true)]
        );
    }

    #[test]
    fn a_token_is_good_for_its_own_list_only() {
        let ours = Listed {
            name: "sessions",
            filter: "a",
        };
        let raw = |token: &str| RawCursor {
            size: 5_000,
            token: token.into(),
        };
        let token = ours.write(b"place");
        let read = |bytes: &[u8]| Some(bytes.to_vec());
        let page = ours.page(&raw(&token), read).ok();
        assert_eq!(page, Some((PAGE_MAX, Some(b"place".to_vec()))));
        let other = Listed {
            filter: "b",
            ..ours
        };
        assert!(other.page(&raw(&token), read).is_err());
        assert!(Listed::QUEUES.page(&raw("x"), read).is_err());
        assert!(ours.page(&raw(&token), |_| None::<()>).is_err());
    }
}
