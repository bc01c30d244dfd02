//! What somebody has set of a queue: whether its jobs are handed out, and what a job gets whose request leaves it out.

use std::time::Duration;

use super::draft::{Faults, RawBackoff, RawSpan};
use super::limits::{ATTEMPT_SPAN_MAX, EXPIRE_IN_MIN, SPAN_MAX};
use super::{Expiry, NewJob, Priority, Start};
use crate::error::Violation;

/// What is set of a queue. Of most queues nothing is: they have the default.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct QueueSettings {
    /// Its jobs are not handed out. Those that run go on, and new ones are accepted.
    pub paused: bool,
    /// For requests that leave something out.
    pub defaults: QueueDefaults,
}

/// What a queue's new jobs get where their request leaves it out; `None`: the service's default.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct QueueDefaults {
    /// Order within the queue.
    pub priority: Option<Priority>,
    /// Attempts that may fail.
    pub max_attempts: Option<u32>,
    /// The waits between them; as a whole.
    pub backoff: Option<Backoff>,
    /// Of one attempt; zero: no limit.
    pub timeout: Option<Duration>,
    /// How long a final job is kept.
    pub retention: Option<Duration>,
    /// How long after it is due a job may still begin.
    pub expire_in: Option<Duration>,
}

/// The waits after failures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// After the first one.
    pub initial: Duration,
    /// No wait is longer.
    pub max: Duration,
    /// Growth from one failure to the next.
    pub factor: f64,
}

/// Some of the things that a queue has defaults for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Defaultable {
    /// `priority`.
    pub priority: bool,
    /// `max_attempts`.
    pub max_attempts: bool,
    /// `backoff`.
    pub backoff: bool,
    /// `timeout`.
    pub timeout: bool,
    /// `retention`.
    pub retention: bool,
    /// `expire_in`.
    pub expire_in: bool,
}

impl Defaultable {
    /// A bit for each, as a hash or a statement takes them: from `priority`, the lowest, in their order here.
    pub fn bits(self) -> u8 {
        let Self {
            priority,
            max_attempts,
            backoff,
            timeout,
            retention,
            expire_in,
        } = self;
        [
            priority,
            max_attempts,
            backoff,
            timeout,
            retention,
            expire_in,
        ]
        .iter()
        .rev()
        .fold(0, |bits, one| bits << 1 | u8::from(*one))
    }
}

/// A change of what is set of a queue.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum QueueChange {
    /// Its jobs are not handed out any more.
    Pause,
    /// They are again.
    Resume,
    /// These defaults become those; the others stay.
    Update(Defaultable, QueueDefaults),
}

impl QueueChange {
    /// What the settings become.
    pub fn apply(self, settings: QueueSettings) -> QueueSettings {
        let mut new = settings;
        match self {
            Self::Pause => new.paused = true,
            Self::Resume => new.paused = false,
            Self::Update(which, to) => {
                let defaults = &mut new.defaults;
                if which.priority {
                    defaults.priority = to.priority;
                }
                if which.max_attempts {
                    defaults.max_attempts = to.max_attempts;
                }
                if which.backoff {
                    defaults.backoff = to.backoff;
                }
                if which.timeout {
                    defaults.timeout = to.timeout;
                }
                if which.retention {
                    defaults.retention = to.retention;
                }
                if which.expire_in {
                    defaults.expire_in = to.expire_in;
                }
            }
        }
        new
    }
}

impl NewJob {
    /// Gives it what its request left out and its queue has a default for. Its fingerprint stays: what was sent is the
    /// same request, whatever the defaults are.
    pub fn take_defaults(&mut self, defaults: &QueueDefaults) {
        let (spec, out) = (&mut self.spec, self.left_out);
        if let Some(priority) = defaults.priority.filter(|_| out.priority) {
            spec.priority = priority;
        }
        if let Some(attempts) = defaults.max_attempts.filter(|_| out.max_attempts) {
            spec.retry.max_attempts = attempts;
        }
        if let Some(backoff) = defaults.backoff.filter(|_| out.backoff) {
            spec.retry.initial = backoff.initial;
            spec.retry.max = backoff.max;
            spec.retry.factor = backoff.factor;
        }
        if let Some(timeout) = defaults.timeout.filter(|_| out.timeout) {
            spec.timeout = Some(timeout).filter(|timeout| !timeout.is_zero());
        }
        if let Some(retention) = defaults.retention.filter(|_| out.retention) {
            spec.retention = retention;
        }
        if let Some(span) = defaults.expire_in.filter(|_| out.expire_in) {
            self.expiry = Some(match self.start {
                Start::Now => Expiry::After(span),
                Start::After(delay) => Expiry::After(delay.saturating_add(span)),
                Start::At(time) => Expiry::At(time.after(span)),
            });
        }
    }
}

/// Defaults as a face has read them, before anything is checked. Absent: the service's default.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RawDefaults {
    /// An unknown number is `Err`.
    pub priority: Option<Result<Priority, i32>>,
    /// 0: absent.
    pub max_attempts: u32,
    /// Its absent parts are the service's.
    pub backoff: Option<RawBackoff>,
    /// Zero: no limit.
    pub timeout: Option<RawSpan>,
    /// How long a final job is kept.
    pub retention: Option<RawSpan>,
    /// How long after it is due a job may still begin.
    pub expire_in: Option<RawSpan>,
}

impl RawDefaults {
    /// Checks them by the bounds of a job's own fields. `item` stands before the names of the fields: "queue." over gRPC,
    /// "" over HTTP.
    ///
    /// # Errors
    /// Every violation there is.
    pub fn check(self, item: &str) -> Result<QueueDefaults, Vec<Violation>> {
        let mut faults = Faults::new(item, "default_");
        let retry = faults.retry(self.max_attempts, self.backoff);
        let priority = match self.priority {
            Some(Err(number)) => {
                faults.add("priority", format!("has no level {number}"));
                None
            }
            Some(Ok(level)) => Some(level),
            None => None,
        };
        let defaults = QueueDefaults {
            priority,
            max_attempts: Some(retry.max_attempts).filter(|_| self.max_attempts > 0),
            backoff: self.backoff.map(|_| Backoff {
                initial: retry.initial,
                max: retry.max,
                factor: retry.factor,
            }),
            timeout: self
                .timeout
                .map(|raw| faults.span("timeout", raw, Duration::ZERO, ATTEMPT_SPAN_MAX)),
            retention: self
                .retention
                .map(|raw| faults.span("retention", raw, Duration::ZERO, SPAN_MAX)),
            expire_in: self
                .expire_in
                .map(|raw| faults.span("expire_in", raw, EXPIRE_IN_MIN, SPAN_MAX)),
        };
        match faults.found.is_empty() {
            true => Ok(defaults),
            false => Err(faults.found),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test says so by failing")]

    use super::super::draft::{Draft, Fields, RawExpiry, RawStart};
    use super::super::{JobId, RetryPolicy};
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn raw(seconds: i64) -> RawSpan {
        RawSpan { seconds, nanos: 0 }
    }

    fn job(change: impl FnOnce(&mut Draft)) -> NewJob {
        let mut draft = Draft {
            queue: "q".into(),
            kind: "k".into(),
            ..Draft::default()
        };
        change(&mut draft);
        let fields = Fields {
            item: String::new(),
            spec: "",
        };
        let id = JobId::parse("01890a5d-ac96-774b-bcce-b302099a8057").unwrap();
        draft.check(&fields, id).unwrap()
    }

    fn defaults() -> QueueDefaults {
        QueueDefaults {
            priority: Some(Priority::High),
            max_attempts: Some(3),
            backoff: Some(Backoff {
                initial: HOUR,
                max: 2 * HOUR,
                factor: 1.5,
            }),
            timeout: Some(Duration::ZERO),
            retention: Some(HOUR),
            expire_in: Some(HOUR),
        }
    }

    #[test]
    fn only_what_a_request_leaves_out_is_the_queues() {
        let mut bare = job(|_| {});
        let sent = bare.fingerprint;
        bare.take_defaults(&defaults());
        let spec = &bare.spec;
        let retry = RetryPolicy {
            max_attempts: 3,
            initial: HOUR,
            max: 2 * HOUR,
            factor: 1.5,
        };
        assert_eq!(
            (spec.priority, spec.retry, spec.timeout, spec.retention),
            (Priority::High, retry, None, HOUR)
        );
        assert_eq!(bare.fingerprint, sent, "it is the same request");
        assert_eq!(bare.expiry, Some(Expiry::After(HOUR)));
        let mut later = job(|d| d.start = RawStart::Delay(raw(60)));
        later.take_defaults(&defaults());
        let after = HOUR + Duration::from_secs(60);
        assert_eq!(later.expiry, Some(Expiry::After(after)), "after it is due");

        let said = |d: &mut Draft| {
            d.priority = Some(Ok(Priority::Low));
            d.max_attempts = 25;
            d.backoff = Some(RawBackoff::default());
            d.timeout = Some(raw(60));
            d.retention = Some(raw(0));
            d.expiry = Some(RawExpiry::In(raw(5)));
        };
        let mut full = job(said);
        let before = full.spec.clone();
        full.take_defaults(&defaults());
        assert_eq!(full.spec, before);
        assert_eq!(full.expiry, Some(Expiry::After(Duration::from_secs(5))));
    }

    #[test]
    fn to_say_the_default_is_another_request_than_to_leave_it_out() {
        let bare = job(|_| {}).fingerprint;
        let said: [fn(&mut Draft); 5] = [
            |d| d.priority = Some(Ok(Priority::Normal)),
            |d| d.max_attempts = 25,
            |d| d.backoff = Some(RawBackoff::default()),
            |d| d.timeout = Some(raw(3_600)),
            |d| d.retention = Some(raw(7 * 24 * 3_600)),
        ];
        let mut prints: Vec<_> = said.map(|say| job(say).fingerprint).into();
        prints.push(bare);
        prints.sort_unstable();
        prints.dedup();
        assert_eq!(prints.len(), 6);
    }

    #[test]
    fn a_change_touches_what_it_names() {
        let paused = QueueChange::Pause.apply(QueueSettings::default());
        assert!(paused.paused);
        let which = Defaultable {
            timeout: true,
            ..Defaultable::default()
        };
        let updated = QueueChange::Update(which, defaults()).apply(paused);
        let expected = QueueDefaults {
            timeout: Some(Duration::ZERO),
            ..QueueDefaults::default()
        };
        assert_eq!((updated.paused, updated.defaults), (true, expected));
        let cleared = QueueChange::Update(which, QueueDefaults::default()).apply(updated);
        assert_eq!(QueueChange::Resume.apply(cleared), QueueSettings::default());
    }

    #[test]
    fn each_thing_has_its_bit() {
        let all = Defaultable {
            priority: true,
            max_attempts: true,
            backoff: true,
            timeout: true,
            retention: true,
            expire_in: true,
        };
        assert_eq!(all.bits(), 63);
        let last = Defaultable {
            expire_in: true,
            ..Defaultable::default()
        };
        assert_eq!(last.bits(), 32);
    }

    #[test]
    fn defaults_have_the_bounds_of_a_jobs_own_fields() {
        let bad = RawDefaults {
            priority: Some(Err(9)),
            max_attempts: 1_000_001,
            backoff: Some(RawBackoff {
                factor: 0.5,
                ..RawBackoff::default()
            }),
            timeout: Some(raw(-1)),
            retention: Some(raw(i64::MAX)),
            expire_in: Some(raw(0)),
        };
        let found = bad.check("queue.").unwrap_err();
        let fields: Vec<_> = found.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "queue.default_max_attempts",
                "queue.default_backoff.factor",
                "queue.default_priority",
                "queue.default_timeout",
                "queue.default_retention",
                "queue.default_expire_in"
            ]
        );
        assert_eq!(
            RawDefaults::default().check(""),
            Ok(QueueDefaults::default())
        );
    }
}
