//! A request for a page of jobs: its filter, its size and its token, judged in one place for all faces.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use crate::error::Violation;
use crate::job::draft::{RawSpan, check_labels, is_storable, time};
use crate::job::id::NAME_SHAPE;
use crate::job::limits::{FILTER_NAMES_MAX, PAGE_DEFAULT, PAGE_MAX, WORD_BYTES_MAX};
use crate::job::{JobId, JobState, Kind, QueueName};
use crate::store::JobFilter;

/// First byte of a token; another one means another layout, or another way to tell a filter.
const VERSION: u8 = 3;

/// What a face has read.
#[derive(Debug, Clone, Default)]
pub struct RawPage {
    /// Names of queues.
    pub queues: Vec<String>,
    /// Names of kinds.
    pub kinds: Vec<String>,
    /// States; `Err` is what was not one.
    pub states: Vec<Result<JobState, String>>,
    /// Labels with their values.
    pub labels: BTreeMap<String, String>,
    /// A time, from which on.
    pub created_after: Option<RawSpan>,
    /// A time, until before which.
    pub created_before: Option<RawSpan>,
    /// A time, from which on.
    pub finished_after: Option<RawSpan>,
    /// A time, until before which.
    pub finished_before: Option<RawSpan>,
    /// Type of the last failure, or empty.
    pub failure_type: String,
    /// 0: the default. More than the most is taken as the most.
    pub size: u32,
    /// Of the page before, or empty.
    pub token: String,
}

/// A page that can be read.
#[derive(Debug, Clone)]
pub struct PageRequest {
    /// What to list.
    pub filter: JobFilter,
    /// Only ids below this.
    pub before: Option<JobId>,
    /// At most so many.
    pub size: usize,
}

/// What a face calls the fields of a filter.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// Names of queues.
    pub queues: &'static str,
    /// Names of kinds.
    pub kinds: &'static str,
    /// States.
    pub states: &'static str,
    /// Labels.
    pub labels: &'static str,
    /// From which time on.
    pub created_after: &'static str,
    /// Until before which time.
    pub created_before: &'static str,
    /// From which time on.
    pub finished_after: &'static str,
    /// Until before which time.
    pub finished_before: &'static str,
    /// Type of the last failure.
    pub failure_type: &'static str,
}

impl Names {
    /// As the proto has them.
    pub const OF_PROTO: Self = Self {
        queues: "filter.queues",
        kinds: "filter.kinds",
        states: "filter.states",
        labels: "filter.labels",
        created_after: "filter.created_after",
        created_before: "filter.created_before",
        finished_after: "filter.finished_after",
        finished_before: "filter.finished_before",
        failure_type: "filter.failure_type",
    };
}

impl RawPage {
    /// Checks it. Violations are named as the caller's face has them.
    ///
    /// # Errors
    /// Every violation there is.
    pub fn check(self, face: Names) -> Result<PageRequest, Vec<Violation>> {
        let Names {
            queues,
            kinds,
            states,
            ..
        } = face;
        let mut found = Vec::new();
        let mut names = |field: &str, count: usize, shaped: bool| {
            if count > FILTER_NAMES_MAX {
                found.push(Violation::field(
                    field,
                    format!("must be at most {FILTER_NAMES_MAX}"),
                ));
            } else if !shaped {
                found.push(Violation::field(field, format!("must match {NAME_SHAPE}")));
            }
        };
        let parsed: Vec<_> = self
            .queues
            .iter()
            .filter_map(|name| QueueName::parse(name))
            .collect();
        names(queues, self.queues.len(), parsed.len() == self.queues.len());
        let kinds_parsed: Vec<_> = self
            .kinds
            .iter()
            .filter_map(|name| Kind::parse(name))
            .collect();
        names(
            kinds,
            self.kinds.len(),
            kinds_parsed.len() == self.kinds.len(),
        );
        let mut filter = JobFilter {
            queues: parsed,
            kinds: kinds_parsed,
            states: Vec::new(),
            labels: self.labels,
            created_after: None,
            created_before: None,
            finished_after: None,
            finished_before: None,
            failure_type: Some(self.failure_type).filter(|name| !name.is_empty()),
        };
        if let Err(why) = check_labels(&filter.labels) {
            found.push(Violation::field(face.labels, why));
        }
        let fits = |name: &String| name.len() <= WORD_BYTES_MAX && is_storable(name);
        if !filter.failure_type.iter().all(fits) {
            let why = format!("must have at most {WORD_BYTES_MAX} bytes and no U+0000");
            found.push(Violation::field(face.failure_type, why));
        }
        for (field, raw, parsed) in [
            (
                face.created_after,
                self.created_after,
                &mut filter.created_after,
            ),
            (
                face.created_before,
                self.created_before,
                &mut filter.created_before,
            ),
            (
                face.finished_after,
                self.finished_after,
                &mut filter.finished_after,
            ),
            (
                face.finished_before,
                self.finished_before,
                &mut filter.finished_before,
            ),
        ] {
            match raw.map(time).transpose() {
                Ok(read) => *parsed = read,
                Err(why) => found.push(Violation::field(field, why)),
            }
        }
        for state in self.states {
            match state {
                Ok(state) if !filter.states.contains(&state) => filter.states.push(state),
                Ok(_) => {}
                Err(what) => found.push(Violation::field(states, format!("has no value {what}"))),
            }
        }
        let before = match self.token.as_str() {
            "" => None,
            token => {
                let before = read_token(token, &filter);
                if before.is_none() {
                    let why = "must be the next_page_token of a page with the same filter";
                    found.push(Violation::field("page_token", why));
                }
                before
            }
        };
        let size = match self.size {
            0 => PAGE_DEFAULT,
            size => usize::try_from(size).unwrap_or(PAGE_MAX).min(PAGE_MAX),
        };
        match found.is_empty() {
            true => Ok(PageRequest {
                filter,
                before,
                size,
            }),
            false => Err(found),
        }
    }
}

/// The token of the page that goes on below `next`.
pub fn write_token(next: JobId, filter: &JobFilter) -> String {
    let mut bytes = vec![VERSION];
    bytes.extend(digest(filter));
    bytes.extend(next.uuid().as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

fn read_token(token: &str, filter: &JobFilter) -> Option<JobId> {
    let bytes: [u8; 25] = URL_SAFE_NO_PAD.decode(token).ok()?.try_into().ok()?;
    let (version, rest) = bytes.split_first()?;
    let (hash, id) = rest.split_at_checked(8)?;
    let known = *version == VERSION && hash == digest(filter);
    JobId::new(uuid::Uuid::from_slice(id).ok()?).filter(|_| known)
}

fn digest(filter: &JobFilter) -> [u8; 8] {
    let mut queues: Vec<_> = filter.queues.iter().map(QueueName::as_str).collect();
    let mut kinds: Vec<_> = filter.kinds.iter().map(Kind::as_str).collect();
    let mut states: Vec<_> = filter.states.iter().map(|state| state.name()).collect();
    [&mut queues, &mut kinds, &mut states]
        .into_iter()
        .for_each(|list| list.sort_unstable());
    let JobFilter {
        labels,
        created_after,
        created_before,
        finished_after,
        finished_before,
        failure_type,
        ..
    } = filter;
    let text = format!(
        "{queues:?}{kinds:?}{states:?}{labels:?}{created_after:?}{created_before:?}{finished_after:?}{finished_before:?}{failure_type:?}"
    );
    let hash: [u8; 32] = Sha256::digest(text).into();
    let mut short = [0; 8];
    short.copy_from_slice(&hash[..8]);
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_own_filter_only() {
        let filter = JobFilter {
            queues: QueueName::parse("a").into_iter().collect(),
            ..JobFilter::default()
        };
        let Some(next) = JobId::parse("01890a5d-ac96-774b-bcce-b302099a8057") else {
            panic!("an id")
        };
        let token = write_token(next, &filter);
        let with = |queue: &str, token: &str| RawPage {
            queues: vec![queue.into()],
            token: token.into(),
            ..RawPage::default()
        };
        assert_eq!(
            with("a", &token)
                .check(Names::OF_PROTO)
                .map(|page| page.before),
            Ok(Some(next))
        );
        for (queue, token) in [("b", token.as_str()), ("a", "x"), ("a", &token[1..])] {
            let found = with(queue, token)
                .check(Names::OF_PROTO)
                .map(|_| ())
                .unwrap_err();
            assert_eq!(found[0].field, "page_token");
        }
    }
}
