//! The part of an address after the question mark, read as strictly as a body.

use std::collections::BTreeMap;
use std::time::Duration;

use super::time::{SPAN_SHAPE, TIME_SHAPE, read_span, read_time};
use crate::engine::cursor::RawCursor;
use crate::engine::page::{Names, PageRequest, RawPage};
use crate::error::{Error, Result, Violation};
use crate::job::draft::{RawSpan, span};
use crate::job::limits::WAIT_MAX;
use crate::job::{JobState, View};

/// Parameters of one address that are looked at: every name of a full filter, and some.
const PARAMETERS_MAX: usize = 100;

/// The parameters that nobody has asked for yet, and what is wrong with those that were.
struct Query {
    left: BTreeMap<String, Vec<String>>,
    faults: Vec<Violation>,
}

/// Reads the parameters of a look at one job: how much of it, and how long to wait for its end.
///
/// # Errors
/// `InvalidArgument` with everything that is wrong.
pub fn get(query: &str) -> Result<(View, Duration)> {
    let mut query = Query::parse(query);
    let view = query.view(View::Full);
    let wait = match query.one("wait") {
        None => Duration::ZERO,
        Some(text) => {
            let read = read_span(&text).ok_or_else(|| SPAN_SHAPE.to_owned());
            let bounded = read.and_then(|raw| span(raw, Duration::ZERO, WAIT_MAX));
            bounded.unwrap_or_else(|why| {
                query.fault("wait", why);
                Duration::ZERO
            })
        }
    };
    query.end()?;
    Ok((view, wait))
}

/// Reads the parameters of a watch: how much of the job is told, and, if its log is told, above which line.
///
/// # Errors
/// `InvalidArgument` with everything that is wrong.
pub fn watch(query: &str) -> Result<(View, Option<u64>)> {
    let mut query = Query::parse(query);
    let view = query.view(View::Basic);
    let log = query.one("log").map(|text| text.parse());
    if matches!(log, Some(Err(_))) {
        query.fault("log", "must be true or false".into());
    }
    let after = query.one("after_log").map(|text| text.parse());
    if matches!(after, Some(Err(_))) {
        query.fault("after_log", "must be a whole number".into());
    }
    query.end()?;
    let log = matches!(log, Some(Ok(true)));
    let after = after.and_then(std::result::Result::ok).unwrap_or_default();
    Ok((view, log.then_some(after)))
}

/// Over HTTP a parameter that may be given more than once has its name in the singular.
const FILTER: Names = Names {
    queues: "queue",
    kinds: "kind",
    states: "state",
    labels: "label",
    created_after: "created_after",
    created_before: "created_before",
    finished_after: "finished_after",
    finished_before: "finished_before",
    failure_type: "failure_type",
};

/// Reads the parameters of a list.
///
/// # Errors
/// `InvalidArgument` with everything that is wrong.
pub fn list(query: &str) -> Result<(PageRequest, View)> {
    let mut query = Query::parse(query);
    let RawCursor { size, token } = query.cursor();
    let view = query.view(View::Basic);
    let raw = RawPage {
        queues: query.many("queue"),
        kinds: query.many("kind"),
        states: query.many("state").into_iter().map(state).collect(),
        labels: query.labels(),
        created_after: query.time("created_after"),
        created_before: query.time("created_before"),
        finished_after: query.time("finished_after"),
        finished_before: query.time("finished_before"),
        failure_type: query.one("failure_type").unwrap_or_default(),
        size,
        token,
    };
    let page = raw.check(FILTER);
    match (page, query.end()) {
        (Ok(page), Ok(())) => Ok((page, view)),
        (Err(mut faults), Err(Error::InvalidArgument(more))) => {
            faults.extend(more);
            Err(Error::InvalidArgument(faults))
        }
        (Err(faults), _) => Err(Error::InvalidArgument(faults)),
        (_, Err(error)) => Err(error),
    }
}

/// Reads the parameters of a list without a filter.
///
/// # Errors
/// `InvalidArgument` with everything that is wrong.
pub fn page(query: &str) -> Result<RawCursor> {
    let mut query = Query::parse(query);
    let page = query.cursor();
    query.end()?;
    Ok(page)
}

/// Reads the parameters of a list of sessions: of which queue, and which page.
///
/// # Errors
/// `InvalidArgument` with everything that is wrong.
pub fn sessions(query: &str) -> Result<(Option<String>, RawCursor)> {
    let mut query = Query::parse(query);
    let (queue, page) = (query.one("queue"), query.cursor());
    query.end()?;
    Ok((queue.filter(|name| !name.is_empty()), page))
}

/// Refuses parameters where there are none.
///
/// # Errors
/// `InvalidArgument` that names them.
pub fn none(query: &str) -> Result<()> {
    Query::parse(query).end()
}

/// The state that a name stands for; `Err` is what to show of one that there is not.
pub fn state(name: String) -> std::result::Result<JobState, String> {
    let short = name.strip_prefix("JOB_STATE_").unwrap_or(&name);
    let known = JobState::ALL
        .into_iter()
        .find(|state| state.name() == short);
    // It is shown to the caller, who may have sent anything.
    known.ok_or_else(|| name.chars().take(40).collect())
}

impl Query {
    fn parse(query: &str) -> Self {
        let mut parsed = Self {
            left: BTreeMap::new(),
            faults: Vec::new(),
        };
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        for (count, pair) in pairs.enumerate() {
            if count == PARAMETERS_MAX {
                parsed.fault("query", format!("has more than {count} parameters"));
                break;
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match (decoded(name), decoded(value)) {
                (Some(name), Some(value)) => parsed.left.entry(name).or_default().push(value),
                (Some(name), None) => parsed.fault(&name, "is not UTF-8, percent-encoded".into()),
                (None, _) => parsed.fault("query", "is not UTF-8, percent-encoded".into()),
            }
        }
        parsed
    }

    fn fault(&mut self, name: &str, why: String) {
        self.faults.push(Violation::field(name, why));
    }

    fn one(&mut self, name: &str) -> Option<String> {
        let mut values = self.left.remove(name)?;
        if values.len() > 1 {
            self.fault(name, "is given twice".into());
        }
        values.pop()
    }

    fn many(&mut self, name: &str) -> Vec<String> {
        self.left.remove(name).unwrap_or_default()
    }

    /// `label=KEY=VALUE`, as often as there are labels.
    fn labels(&mut self) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        for pair in self.many("label") {
            match pair.split_once('=') {
                Some((key, value)) => {
                    if labels.insert(key.to_owned(), value.to_owned()).is_some() {
                        self.fault("label", "has a key twice".into());
                    }
                }
                None => self.fault("label", "must be KEY=VALUE".into()),
            }
        }
        labels
    }

    fn time(&mut self, name: &str) -> Option<RawSpan> {
        let text = self.one(name)?;
        let time = read_time(&text);
        if time.is_none() {
            self.fault(name, TIME_SHAPE.into());
        }
        time
    }

    fn cursor(&mut self) -> RawCursor {
        let size = self.one("page_size").map(|text| text.parse());
        if matches!(size, Some(Err(_))) {
            self.fault("page_size", "must be a whole number".into());
        }
        RawCursor {
            size: size.and_then(std::result::Result::ok).unwrap_or_default(),
            token: self.one("page_token").unwrap_or_default(),
        }
    }

    fn view(&mut self, default: View) -> View {
        let Some(name) = self.one("view") else {
            return default;
        };
        match name.strip_prefix("VIEW_").unwrap_or(&name) {
            "BASIC" => View::Basic,
            "FULL" => View::Full,
            "UNSPECIFIED" => default,
            _ => {
                self.fault("view", "must be BASIC or FULL".into());
                default
            }
        }
    }

    fn end(mut self) -> Result<()> {
        for name in std::mem::take(&mut self.left).into_keys() {
            self.fault(&name, "is not known".into());
        }
        match self.faults.is_empty() {
            true => Ok(()),
            false => Err(Error::InvalidArgument(self.faults)),
        }
    }
}

/// Undoes percent-encoding; `None` when the result is not UTF-8, or a percent sign stands alone.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn fields(error: Error) -> Vec<String> {
        let Error::InvalidArgument(violations) = error else {
            return Vec::new();
        };
        violations.into_iter().map(|v| v.field).collect()
    }

    #[test]
    fn a_list_is_read_with_repeated_names() {
        let (read, view) =
            list("queue=a&queue=b%3Ac&state=FAILED&state=JOB_STATE_QUEUED&page_size=5000").unwrap();
        assert_eq!(read.filter.queues.len(), 2);
        assert_eq!(read.filter.states, [JobState::Failed, JobState::Queued]);
        assert_eq!((read.size, view, read.before), (1000, View::Basic, None));
        assert_eq!(list("").unwrap().0.size, 50);
    }

    #[test]
    fn what_is_wrong_with_an_address_is_named() {
        let bad = "queue=a+b&stat=x&state=LOST&page_size=-1&view=ALL&kind=%ff";
        assert_eq!(
            fields(list(bad).unwrap_err()),
            ["queue", "state", "kind", "page_size", "view", "stat"]
        );
        assert_eq!(fields(list("page_token=zz").unwrap_err()), ["page_token"]);
        assert_eq!(fields(get("wait=10").unwrap_err()), ["wait"]);
        assert_eq!(fields(get("wait=61s").unwrap_err()), ["wait"]);
        assert_eq!(fields(get("wait=1s&wait=2s").unwrap_err()), ["wait"]);
        assert_eq!(fields(list("%zz=1").unwrap_err()), ["query"]);
        let many = "queue=a&".repeat(21);
        assert_eq!(fields(list(&many).unwrap_err()), ["queue"]);
        assert_eq!(fields(none("x=1").unwrap_err()), ["x"]);
    }

    #[test]
    fn a_look_is_full_and_does_not_wait_unless_asked() {
        assert_eq!(get("").unwrap(), (View::Full, Duration::ZERO));
        assert_eq!(
            get("wait=10s&view=BASIC").unwrap(),
            (View::Basic, Duration::from_secs(10))
        );
    }
}
