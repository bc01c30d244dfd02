//! From what a client sent to a job that cannot be wrong. The one place where an enqueue request is judged, whichever
//! face it came through.

use std::collections::BTreeMap;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::id::NAME_SHAPE;
use super::limits::{
    ATTEMPT_SPAN_MAX, BACKOFF_FACTOR_MAX, BACKOFF_MIN, EXPIRE_IN_MIN, LABELS_BYTES_MAX, LABELS_MAX,
    MAX_ATTEMPTS_MAX, NAME_BYTES_MAX, PAYLOAD_BYTES_MAX, RETENTION_DEFAULT, SPAN_MAX,
    TIMEOUT_DEFAULT, WORD_BYTES_MAX,
};
use super::time::micros;
use super::{
    Defaultable, Expiry, IdempotencyKey, Job, JobId, JobSpec, Kind, NewJob, Payload, Priority,
    QueueName, RetryPolicy, Start, Timestamp, UniqueConflict, UniqueKey,
};
use crate::error::Violation;

/// A duration as the wire has it: it may be negative or absurd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawSpan {
    /// Whole seconds.
    pub seconds: i64,
    /// Billionths of a second, of the same sign.
    pub nanos: i32,
}

/// A backoff as the wire has it. Absent parts take their defaults.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RawBackoff {
    /// Wait after the first failure.
    pub initial: Option<RawSpan>,
    /// No wait is longer.
    pub max: Option<RawSpan>,
    /// Growth; 0: the default.
    pub factor: f64,
}

/// When to start, as the wire has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RawStart {
    /// Not said: at once.
    #[default]
    Now,
    /// From now.
    Delay(RawSpan),
    /// Seconds and nanoseconds since 1970.
    At(RawSpan),
}

/// Until when to begin, as the wire has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RawExpiry {
    /// From now.
    In(RawSpan),
    /// Seconds and nanoseconds since 1970.
    At(RawSpan),
}

/// An enqueue request as a face has read it, before anything is checked.
#[derive(Debug, Clone, Default)]
pub struct Draft {
    /// UUIDv7, or empty for a new one.
    pub id: String,
    /// Empty: none.
    pub idempotency_key: String,
    /// Empty: none.
    pub unique_key: String,
    /// Absent: the default. An unknown number is `Err`.
    pub unique_conflict: Option<Result<UniqueConflict, i32>>,
    /// Required.
    pub queue: String,
    /// Required.
    pub kind: String,
    /// Absent: an empty body.
    pub payload: Option<Payload>,
    /// Absent: normal. An unknown number is `Err`.
    pub priority: Option<Result<Priority, i32>>,
    /// When to start.
    pub start: RawStart,
    /// Absent: no time is too late.
    pub expiry: Option<RawExpiry>,
    /// 0: the default.
    pub max_attempts: u32,
    /// Absent: the default.
    pub backoff: Option<RawBackoff>,
    /// Absent: the default; zero: none.
    pub timeout: Option<RawSpan>,
    /// Absent: the default.
    pub retention: Option<RawSpan>,
    /// To list and filter by.
    pub labels: BTreeMap<String, String>,
    /// For the worker.
    pub headers: BTreeMap<String, String>,
}

/// A copy of a job with another payload, as a face has read it.
#[derive(Debug, Clone, Default)]
pub struct DraftCopy {
    /// UUIDv7 for the copy, or empty for a new one.
    pub new_job_id: String,
    /// What it gets instead.
    pub payload: Payload,
    /// Wait before it is due.
    pub delay: Duration,
}

impl DraftCopy {
    /// Checks everything. The copy has all of the job but its payload, its id and its idempotency key, which is that of one
    /// job; and as somebody asks for it now, it does not expire.
    ///
    /// # Errors
    /// Every violation there is.
    pub fn check(self, of: &Job, fresh: JobId) -> Result<NewJob, Vec<Violation>> {
        let mut faults = Faults {
            item: "",
            spec: "",
            found: Vec::new(),
        };
        let id = match self.new_job_id.as_str() {
            "" => Some(fresh),
            text => JobId::parse(text),
        };
        faults.require(id.is_some(), "new_job_id", || {
            "must be a UUIDv7 in its 36-character form".into()
        });
        let payload = faults.payload(Some(self.payload));
        let start = match self.delay.is_zero() {
            true => Start::Now,
            false => Start::After(self.delay),
        };
        // It has what its original has, whatever its queue's defaults are now.
        let left_out = Defaultable::default();
        match id {
            Some(id) if faults.found.is_empty() => Ok(NewJob {
                id,
                idempotency_key: None,
                spec: of.spec.clone(),
                fingerprint: fingerprint(&of.spec, &payload, start, None, left_out, Some(of.id)),
                left_out,
                payload,
                start,
                expiry: None,
                unique_conflict: UniqueConflict::Refuse,
                copied_from: Some(of.id),
            }),
            _ => Err(faults.found),
        }
    }
}

/// Where a face has the fields of a [`Draft`], so that a violation is named as the caller wrote it.
#[derive(Debug, Clone)]
pub struct Fields {
    /// Before `job_id`, `idempotency_key` and `unique_conflict`: "" or "requests[17]." or "jobs[17].".
    pub item: String,
    /// Before the fields of the spec, after `item`: "job." over gRPC, "" over HTTP.
    pub spec: &'static str,
}

impl Draft {
    /// Checks everything and fills in the defaults. `fresh` is the id it gets when the client sent none.
    ///
    /// # Errors
    /// Every violation there is, not only the first.
    pub fn check(self, fields: &Fields, fresh: JobId) -> Result<NewJob, Vec<Violation>> {
        let left_out = self.left_out();
        let mut faults = Faults::new(&fields.item, fields.spec);

        let id = match self.id.as_str() {
            "" => Some(fresh),
            text => JobId::parse(text),
        };
        if id.is_none() {
            faults.found.push(Violation::field(
                format!("{}job_id", fields.item),
                "must be a UUIDv7 in its 36-character form",
            ));
        }
        let idempotency_key = match self.idempotency_key.as_str() {
            "" => None,
            text => {
                let key = IdempotencyKey::parse(text);
                if key.is_none() {
                    faults.found.push(Violation::field(
                        format!("{}idempotency_key", fields.item),
                        format!("must have at most {WORD_BYTES_MAX} bytes and no U+0000"),
                    ));
                }
                key
            }
        };
        let (unique_key, unique_conflict) = faults.unique(&self.unique_key, self.unique_conflict);
        let queue = QueueName::parse(&self.queue);
        faults.require(queue.is_some(), "queue", || {
            format!("must match {NAME_SHAPE}")
        });
        let kind = Kind::parse(&self.kind);
        faults.require(kind.is_some(), "kind", || {
            format!("must match {NAME_SHAPE}")
        });
        let payload = faults.payload(self.payload);
        let priority = match self.priority {
            None => Priority::Normal,
            Some(Ok(level)) => level,
            Some(Err(number)) => {
                faults.add("priority", format!("has no level {number}"));
                Priority::Normal
            }
        };
        let start = start(self.start).unwrap_or_else(|(field, why)| {
            faults.add(field, why);
            Start::Now
        });
        let expiry = self.expiry.map(|raw| faults.expiry(raw, start));
        let retry = faults.retry(self.max_attempts, self.backoff);
        let timeout = match self.timeout {
            None => Some(TIMEOUT_DEFAULT),
            Some(raw) => Some(faults.span("timeout", raw, Duration::ZERO, ATTEMPT_SPAN_MAX))
                .filter(|t| !t.is_zero()),
        };
        let retention = match self.retention {
            None => RETENTION_DEFAULT,
            Some(raw) => faults.span("retention", raw, Duration::ZERO, SPAN_MAX),
        };
        faults.labels("labels", &self.labels);
        faults.labels("headers", &self.headers);
        let bytes: usize = self
            .labels
            .iter()
            .chain(&self.headers)
            .map(|(k, v)| k.len() + v.len())
            .sum();
        faults.require(bytes <= LABELS_BYTES_MAX, "labels", || {
            format!("and headers together have {bytes} bytes, more than {LABELS_BYTES_MAX}")
        });

        match (id, queue, kind) {
            (Some(id), Some(queue), Some(kind)) if faults.found.is_empty() => {
                let spec = JobSpec {
                    queue,
                    kind,
                    priority,
                    retry,
                    timeout,
                    retention,
                    unique_key,
                    labels: self.labels,
                    headers: self.headers,
                };
                let fingerprint = fingerprint(&spec, &payload, start, expiry, left_out, None);
                Ok(NewJob {
                    id,
                    idempotency_key,
                    spec,
                    payload,
                    start,
                    expiry,
                    unique_conflict,
                    copied_from: None,
                    fingerprint,
                    left_out,
                })
            }
            _ => Err(faults.found),
        }
    }

    fn left_out(&self) -> Defaultable {
        Defaultable {
            priority: self.priority.is_none(),
            max_attempts: self.max_attempts == 0,
            backoff: self.backoff.is_none(),
            timeout: self.timeout.is_none(),
            retention: self.retention.is_none(),
            expire_in: self.expiry.is_none(),
        }
    }
}

/// Reads when a job is to start; how far ahead a time may lie is for the database's clock to judge.
///
/// # Errors
/// The field, and a text that says what it must be.
pub fn start(raw: RawStart) -> Result<Start, (&'static str, String)> {
    match raw {
        RawStart::Now => Ok(Start::Now),
        RawStart::Delay(raw) => span(raw, Duration::ZERO, SPAN_MAX)
            .map(Start::After)
            .map_err(|why| ("delay", why)),
        RawStart::At(raw) => time(raw).map(Start::At).map_err(|why| ("run_time", why)),
    }
}

/// Reads a span that must lie in `min..=max`.
///
/// # Errors
/// A text that says what it must be.
pub fn span(raw: RawSpan, min: Duration, max: Duration) -> Result<Duration, String> {
    let signs_agree = raw.seconds == 0 || raw.nanos == 0 || (raw.seconds > 0) == (raw.nanos > 0);
    let parsed = match (u64::try_from(raw.seconds), u32::try_from(raw.nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 && signs_agree => {
            Some(Duration::new(seconds, nanos))
        }
        _ => None,
    };
    parsed
        .filter(|span| (min..=max).contains(span))
        .ok_or_else(|| format!("must be a duration from {min:?} to {max:?}"))
}

/// Reads seconds and nanoseconds since 1970. How far ahead it may lie is for the database's clock to judge.
///
/// # Errors
/// A text that says what it must be: 0001-01-01 to 9999-12-31, as protobuf has it.
pub fn time(raw: RawSpan) -> Result<Timestamp, String> {
    let in_range = (-62_135_596_800..=253_402_300_799).contains(&raw.seconds)
        && (0..1_000_000_000).contains(&raw.nanos);
    match in_range {
        true => Ok(Timestamp(
            raw.seconds * 1_000_000 + i64::from(raw.nanos) / 1_000,
        )),
        false => Err("must be a time between the years 1 and 9999".into()),
    }
}

/// Text that both databases can hold.
pub fn is_storable(text: &str) -> bool {
    !text.contains('\0')
}

/// What was found to be wrong with the fields of one message.
pub(super) struct Faults<'a> {
    item: &'a str,
    spec: &'static str,
    pub(super) found: Vec<Violation>,
}

impl<'a> Faults<'a> {
    /// Nothing yet. The two stand before a field's name.
    pub(super) fn new(item: &'a str, spec: &'static str) -> Self {
        Self {
            item,
            spec,
            found: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, field: &str, why: String) {
        let Self { item, spec, .. } = self;
        self.found
            .push(Violation::field(format!("{item}{spec}{field}"), why));
    }

    fn require(&mut self, holds: bool, field: &str, why: impl FnOnce() -> String) {
        if !holds {
            self.add(field, why());
        }
    }

    pub(super) fn span(
        &mut self,
        field: &str,
        raw: RawSpan,
        min: Duration,
        max: Duration,
    ) -> Duration {
        span(raw, min, max).unwrap_or_else(|why| {
            self.add(field, why);
            min
        })
    }

    fn time(&mut self, field: &str, raw: RawSpan) -> Timestamp {
        time(raw).unwrap_or_else(|why| {
            self.add(field, why);
            Timestamp(0)
        })
    }

    fn unique(
        &mut self,
        key: &str,
        conflict: Option<Result<UniqueConflict, i32>>,
    ) -> (Option<UniqueKey>, UniqueConflict) {
        let parsed = UniqueKey::parse(key);
        self.require(key.is_empty() || parsed.is_some(), "unique_key", || {
            format!("must have at most {WORD_BYTES_MAX} bytes and no U+0000")
        });
        let why = match conflict {
            Some(Err(number)) => Some(format!("has no value {number}")),
            Some(Ok(_)) if key.is_empty() => Some("needs a unique_key".into()),
            Some(Ok(_)) | None => None,
        };
        if let Some(why) = why {
            let field = format!("{}unique_conflict", self.item);
            self.found.push(Violation::field(field, why));
        }
        let conflict = conflict.and_then(Result::ok).unwrap_or_default();
        (parsed, conflict)
    }

    /// What compares with a moment of the database is for its clock to judge.
    fn expiry(&mut self, raw: RawExpiry, start: Start) -> Expiry {
        const TOO_SOON: &str = "must be after the time at which the job may run first";
        match raw {
            RawExpiry::In(raw) => {
                let span = self.span("expire_in", raw, EXPIRE_IN_MIN, SPAN_MAX);
                let is_too_soon =
                    matches!(start, Start::After(delay) if micros(span) <= micros(delay));
                self.require(!is_too_soon, "expire_in", || TOO_SOON.into());
                Expiry::After(span)
            }
            RawExpiry::At(raw) => {
                let time = self.time("expire_time", raw);
                let is_too_soon = matches!(start, Start::At(start) if time <= start);
                self.require(!is_too_soon, "expire_time", || TOO_SOON.into());
                Expiry::At(time)
            }
        }
    }

    fn payload(&mut self, payload: Option<Payload>) -> Payload {
        let mut payload = payload.unwrap_or_default();
        let size = payload.data.len();
        if size > PAYLOAD_BYTES_MAX {
            let field = format!("{}{}payload", self.item, self.spec);
            self.found
                .push(Violation::too_large(field, size, PAYLOAD_BYTES_MAX));
        }
        let word = &payload.content_type;
        let fits = word.len() <= WORD_BYTES_MAX && is_storable(word);
        self.require(fits, "payload.content_type", || {
            format!("must have at most {WORD_BYTES_MAX} bytes and no U+0000")
        });
        if payload.content_type.is_empty() {
            payload.content_type = match payload.is_text {
                true => "text/plain; charset=utf-8".into(),
                false => "application/octet-stream".into(),
            };
        }
        payload
    }

    pub(super) fn retry(&mut self, max_attempts: u32, backoff: Option<RawBackoff>) -> RetryPolicy {
        let mut policy = RetryPolicy::default();
        if max_attempts > 0 {
            policy.max_attempts = max_attempts;
        }
        self.require(max_attempts <= MAX_ATTEMPTS_MAX, "max_attempts", || {
            format!("must be at most {MAX_ATTEMPTS_MAX}")
        });
        let raw = backoff.unwrap_or_default();
        if let Some(max) = raw.max {
            policy.max = self.span("backoff.max", max, BACKOFF_MIN, ATTEMPT_SPAN_MAX);
        }
        match raw.initial {
            Some(initial) => {
                policy.initial =
                    self.span("backoff.initial", initial, BACKOFF_MIN, ATTEMPT_SPAN_MAX)
            }
            None => policy.initial = policy.initial.min(policy.max),
        }
        self.require(policy.initial <= policy.max, "backoff.max", || {
            "must not be below backoff.initial".into()
        });
        if raw.factor != 0.0 {
            policy.factor = raw.factor;
        }
        self.require(
            (1.0..=BACKOFF_FACTOR_MAX).contains(&policy.factor),
            "backoff.factor",
            || format!("must be from 1 to {BACKOFF_FACTOR_MAX}"),
        );
        policy
    }

    fn labels(&mut self, field: &str, labels: &BTreeMap<String, String>) {
        if let Err(why) = check_labels(labels) {
            self.add(field, why);
        }
    }
}

/// Judges the count, keys and values of labels or headers.
///
/// # Errors
/// A text that says what they must be.
pub fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), String> {
    if labels.len() > LABELS_MAX {
        return Err(format!(
            "has {} entries, more than {LABELS_MAX}",
            labels.len()
        ));
    }
    for (key, value) in labels {
        let plain = key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.:/-".contains(&b));
        if !plain || !(1..=NAME_BYTES_MAX).contains(&key.len()) {
            return Err(format!(
                "has a key that does not match [A-Za-z0-9_.:/-]{{1,{NAME_BYTES_MAX}}}"
            ));
        }
        if !is_storable(value) {
            return Err(format!("has U+0000 in the value of {key}"));
        }
    }
    Ok(())
}

/// Hashes what makes a request the same request: its fields by value, each with its length before it. Not the encoded
/// message (protobuf is not canonical), not the id or the idempotency key, which say whose request it is, not what is to be
/// done if its unique key is held, which says nothing of the job, and not the
/// headers (a retried call has a new trace). What came later than the first version is only hashed where it is used, under
/// a word that is no label's key: rows are there whose fingerprints know nothing of it.
fn fingerprint(
    spec: &JobSpec,
    payload: &Payload,
    start: Start,
    expiry: Option<Expiry>,
    left_out: Defaultable,
    copied_from: Option<JobId>,
) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut put = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    put(b"leasehold/1");
    put(spec.queue.as_str().as_bytes());
    put(spec.kind.as_str().as_bytes());
    put(payload.content_type.as_bytes());
    put(&[u8::from(payload.is_text)]);
    put(&payload.data);
    put(&spec.priority.number().to_be_bytes());
    match start {
        Start::Now => put(b"now"),
        Start::After(delay) => put(&delay.as_nanos().to_be_bytes()),
        Start::At(time) => put(&time.0.to_be_bytes()),
    }
    put(&spec.retry.max_attempts.to_be_bytes());
    put(&spec.retry.initial.as_nanos().to_be_bytes());
    put(&spec.retry.max.as_nanos().to_be_bytes());
    put(&spec.retry.factor.to_be_bytes());
    put(&spec.timeout.unwrap_or_default().as_nanos().to_be_bytes());
    put(&spec.retention.as_nanos().to_be_bytes());
    if let Some(key) = &spec.unique_key {
        put(b"=unique_key");
        put(key.as_str().as_bytes());
    }
    if let Some(of) = copied_from {
        put(b"=copied_from");
        put(of.uuid().as_bytes());
    }
    match expiry {
        None => {}
        Some(Expiry::After(span)) => {
            put(b"=expire_in");
            put(&span.as_nanos().to_be_bytes());
        }
        Some(Expiry::At(time)) => {
            put(b"=expire_time");
            put(&time.0.to_be_bytes());
        }
    }
    for (key, value) in &spec.labels {
        put(key.as_bytes());
        put(value.as_bytes());
    }
    // Whoever leaves out what is hashed above as the service's default may get the queue's, and asks for something else
    // than who says just that. No label has such a key.
    let restated = restated(spec, left_out);
    if restated != Defaultable::default() {
        put(b"\0restated");
        put(&[restated.bits()]);
    }
    hash.finalize().into()
}

/// What a request says although it is the service's default.
fn restated(spec: &JobSpec, left_out: Defaultable) -> Defaultable {
    let (retry, default) = (spec.retry, RetryPolicy::default());
    let backoff = |policy: RetryPolicy| (policy.initial, policy.max, policy.factor);
    Defaultable {
        priority: !left_out.priority && spec.priority == Priority::Normal,
        max_attempts: !left_out.max_attempts && retry.max_attempts == default.max_attempts,
        backoff: !left_out.backoff && backoff(retry) == backoff(default),
        timeout: !left_out.timeout && spec.timeout == Some(TIMEOUT_DEFAULT),
        retention: !left_out.retention && spec.retention == RETENTION_DEFAULT,
        // Its default cannot be said.
        expire_in: false,
    }
}
