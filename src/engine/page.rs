//! Tokens of pages: where the next page of a list begins, bound to the filter that it belongs to.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::job::JobId;
use crate::store::JobFilter;

const VERSION: u8 = 1;
const MARK: usize = 8;
const SIZE: usize = 1 + MARK + 16;

/// The token of the page that begins below `next`. Opaque: its form may change with any version.
pub fn encode(filter: &JobFilter, next: JobId) -> String {
    let mut bytes = Vec::with_capacity(SIZE);
    bytes.push(VERSION);
    bytes.extend_from_slice(&mark(filter));
    bytes.extend_from_slice(next.uuid().as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads a token that came with `filter`; an empty one is the first page.
///
/// # Errors
/// `InvalidArgument` for `page_token`: made up, of another version, or of another filter.
pub fn decode(filter: &JobFilter, token: &str) -> Result<Option<JobId>> {
    if token.is_empty() {
        return Ok(None);
    }
    let bad = || Error::field("page_token", "is not a token of a page of this list");
    // Longer ones are not even decoded.
    if token.len() > SIZE * 2 {
        return Err(bad());
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| bad())?;
    let (version, rest) = bytes.split_first().ok_or_else(bad)?;
    let (found, id) = rest.split_at_checked(MARK).ok_or_else(bad)?;
    if *version != VERSION {
        return Err(bad());
    }
    if found != mark(filter) {
        return Err(Error::field("page_token", "belongs to another filter"));
    }
    let id = Uuid::from_slice(id).map_err(|_| bad())?;
    JobId::new(id).map(Some).ok_or_else(bad)
}

/// Tells filters apart. Not a secret: a token gives nobody more than the list itself does.
fn mark(filter: &JobFilter) -> [u8; MARK] {
    let JobFilter {
        queues,
        kinds,
        states,
    } = filter;
    let mut words: Vec<String> = Vec::new();
    words.extend(queues.iter().map(|queue| format!("q{queue}")));
    words.extend(kinds.iter().map(|kind| format!("k{kind}")));
    words.extend(states.iter().map(|state| format!("s{}", state.name())));
    words.sort_unstable();
    words.dedup();
    // No name holds a line feed.
    let digest: [u8; 32] = Sha256::digest(words.join("\n")).into();
    let mut mark = [0; MARK];
    for (to, from) in mark.iter_mut().zip(digest) {
        *to = from;
    }
    mark
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::job::{JobState, QueueName};

    fn id() -> JobId {
        JobId::parse("01890a5d-ac96-774b-bcce-b302099a8057").unwrap()
    }

    #[test]
    fn a_token_leads_back_to_its_place() {
        let filter = JobFilter {
            queues: vec![QueueName::parse("a").unwrap()],
            ..JobFilter::default()
        };
        let token = encode(&filter, id());
        assert_eq!(decode(&filter, &token).unwrap(), Some(id()));
        assert_eq!(decode(&filter, "").unwrap(), None);
    }

    #[test]
    fn a_token_of_another_filter_or_of_nobody_is_refused() {
        let filter = JobFilter::default();
        let failed = JobFilter {
            states: vec![JobState::Failed],
            ..JobFilter::default()
        };
        let token = encode(&filter, id());
        assert!(decode(&failed, &token).is_err());
        for bad in [
            "x",
            "AAAA",
            "ä",
            &"A".repeat(34),
            &"A".repeat(5000),
            &token[1..],
        ] {
            assert!(decode(&filter, bad).is_err(), "{bad}");
        }
    }
}
