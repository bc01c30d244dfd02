//! Every bound of the service, with its unit and the reason for it.
//!
//! A bound becomes an option only when a user has a reason to change it.

use std::time::Duration;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Bytes of a payload or an output. Larger things belong in an object store, with their address in the payload.
pub const PAYLOAD_BYTES_MAX: usize = MIB;
/// Bytes of a queue's or a kind's name.
pub const NAME_BYTES_MAX: usize = 128;
/// Bytes of a content type, an idempotency key, a worker's name, an SDK's name or a failure's type.
pub const WORD_BYTES_MAX: usize = 255;
/// Bytes of a failure's message.
pub const FAILURE_MESSAGE_BYTES_MAX: usize = 8 * KIB;
/// Bytes of a failure's detail.
pub const FAILURE_DETAIL_BYTES_MAX: usize = 32 * KIB;
/// Bytes of the reason of a release or a cancel.
pub const REASON_BYTES_MAX: usize = KIB;
/// The highest count of a worker's reports on a job; databases have no unsigned numbers.
pub const REVISION_MAX: u64 = i64::MAX as u64;
/// Bytes of a checkpoint.
pub const CHECKPOINT_BYTES_MAX: usize = 64 * KIB;
/// Lines of a job's log that are kept, the newest ones, over all attempts. It is for people who look at one job; what is
/// to be searched belongs in a log store.
pub const LOG_LINES_MAX: usize = 1_000;
/// Bytes of the words of a job's log that are kept.
pub const LOG_BYTES_MAX: usize = 256 * KIB;
/// Bytes of one line of a log.
pub const LOG_MESSAGE_BYTES_MAX: usize = 8 * KIB;
/// The highest number of an attempt's first line in a report: numbers of all attempts together fit those of databases.
pub const LOG_NUMBER_MAX: u64 = 1_000_000_000;
/// Jobs whose logs are read together.
pub const LOGS_READ_MAX: usize = 32;
/// Entries of the labels, and of the headers, of one job.
pub const LABELS_MAX: usize = 64;
/// Bytes of the keys and values of labels and headers together.
pub const LABELS_BYTES_MAX: usize = 16 * KIB;

/// Jobs in one batch: of a request, of a flush, of a frame.
pub const BATCH_MAX: usize = 1_000;
/// Bytes of payload and words in one batch.
pub const BATCH_BYTES_MAX: usize = 4 * MIB;
/// Bytes of jobs that a node holds between their call and their commit; more are refused until some are durable.
pub const ENQUEUE_BYTES_MAX: usize = 64 * MIB;
/// Bytes of results that a node holds until they are recorded; what comes beyond is to be sent again.
pub const RESULT_BYTES_MAX: usize = 64 * MIB;
/// Bytes of progress and checkpoints that a node holds until they are recorded; what counts is to be sent again.
pub const REPORT_BYTES_MAX: usize = 64 * MIB;
/// Bytes of lines of logs that a node holds until they are recorded; what comes beyond is to be sent again.
pub const LOGGED_BYTES_MAX: usize = 16 * MIB;
/// Bytes of one message that a client may send: a full batch and its envelope.
pub const MESSAGE_BYTES_MAX: usize = BATCH_BYTES_MAX + MIB;
/// Bytes of one HTTP body: a full batch, a third larger in base64, and its envelope.
pub const BODY_BYTES_MAX: usize = BATCH_BYTES_MAX * 4 / 3 + MIB;
/// A request's body must have ended within this.
pub const BODY_WITHIN: Duration = Duration::from_secs(30);
/// Nesting of a JSON document that is accepted, or given back as JSON. Many readers break beyond it.
pub const JSON_DEPTH_MAX: usize = 128;
/// Bytes that a frame of jobs is filled to; a larger job goes alone in its frame.
pub const FRAME_BYTES: usize = MIB;
/// Smallest message that a worker must be able to receive: the largest job allowed, in its envelope.
pub const FRAME_BYTES_MIN: usize = 2 * MIB;
/// Jobs of one page of a list.
pub const PAGE_MAX: usize = 1_000;
/// Jobs of one page when the caller does not say.
pub const PAGE_DEFAULT: usize = 50;
/// Rows that one page may look at when no index answers its filter.
pub const PAGE_ROWS_MAX: usize = 10_000;
/// Names in one condition of a filter.
pub const FILTER_NAMES_MAX: usize = 20;
/// Jobs that are counted for another one's place in line.
pub const PLACE_MAX: usize = 5_000;
/// Queues of which something is set, at the same time: each node keeps them in memory.
pub const QUEUES_SET_MAX: usize = 10_000;
/// Records of changes by hand that are kept, the newest ones.
pub const AUDIT_KEPT: usize = 10_000;
/// A node that has told nothing for so long is gone, and is forgotten.
pub const NODE_KEPT: Duration = Duration::from_secs(60 * 60);
/// Bulks that have not ended, at the same time: each may hold the ids of a million jobs.
pub const BULKS_LIVE_MAX: usize = 50;
/// Bulks that are there at the same time; more are refused until some are forgotten.
pub const BULKS_MAX: usize = 10_000;
/// Bulks that are kept after their end, the newest ones,
pub const BULKS_KEPT: usize = 1_000;
/// and for so long.
pub const BULK_RETENTION: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Jobs that one bulk may cover: 24 bytes of the store each, until it has come to them.
pub const BULK_JOBS_MAX: u64 = 1_000_000;
/// Jobs that one step of a bulk acts on: few enough that nobody waits long for their rows.
pub const BULK_STEP_MAX: usize = 500;
/// Ids of jobs that a bulk shows.
pub const BULK_SAMPLE: usize = 10;
/// Jobs per second that a bulk may ask for.
pub const BULK_RATE_MAX: u32 = 1_000_000;
/// Jobs of one stage of a canary: each look at it looks at all of them.
pub const CANARY_STAGE_MAX: u32 = 1_000;
/// Share of a stage that may fail again, when the canary does not say.
pub const CANARY_FAILED_SHARE: f64 = 0.1;
/// How long a stage may take when the canary does not say.
pub const CANARY_WITHIN: Duration = Duration::from_secs(60 * 60);
/// The longest that a stage may take.
pub const CANARY_WITHIN_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// How often a node tells what went on in its queues.
pub const FLOWS_EVERY: Duration = Duration::from_secs(5);
/// Queues of which a node counts what goes on within that time; of others no rates are known.
pub const FLOWS_MAX: usize = 10_000;
/// Rates are taken over this time,
pub const RATES_OVER: Duration = Duration::from_secs(60);
/// which has ended so long ago: by then all nodes have told.
pub const RATES_LAG: Duration = Duration::from_secs(6);
/// What nodes have told is kept so long.
pub const FLOWS_KEPT: Duration = Duration::from_secs(5 * 60);
/// Attempts that a full view shows, the newest ones.
pub const ATTEMPTS_SHOWN: usize = 50;

/// Slots of one session.
pub const WINDOW_MAX: u32 = 10_000;
/// Queues that one session subscribes to.
pub const SUBSCRIPTIONS_MAX: usize = 100;
/// Kinds that one session names.
pub const KINDS_MAX: usize = 1_000;
/// Leases that one Hello or Heartbeat may state: those in flight, and finished ones that await receipts.
pub const HELD_MAX: usize = 2 * WINDOW_MAX as usize;
/// Bytes of a resume token: ours have 32.
pub const RESUME_TOKEN_BYTES: std::ops::RangeInclusive<usize> = 16..=64;
/// The highest count of a session's Hellos; databases have no unsigned numbers.
pub const ATTACH_SEQUENCE_MAX: u64 = i64::MAX as u64;
/// Bytes that wait to be sent to one worker before it gets no more jobs.
pub const OUTBOX_BYTES_SOFT: usize = 4 * MIB;
/// Bytes that wait to be sent to all workers of a node before only those get jobs who have read all that they were sent:
/// a crowd that does not read must not take the memory that the others' jobs need.
pub const OUTBOXES_BYTES_SOFT: usize = 256 * MIB;
/// Bytes of payload that one grant hands out; what is beyond is handed out by the next. With the bound below it is
/// what one worker's jobs can take of a node's memory, whatever their size turns out to be.
pub const GRANT_BYTES_MAX: usize = 8 * MIB;
/// Bytes that wait to be sent to one worker, its jobs aside, before its stream is ended: it does not read.
pub const OUTBOX_BYTES_HARD: usize = 16 * MIB;
/// Streams of workers on one node.
pub const STREAMS_MAX: usize = 10_000;
/// Streams beyond that for sessions that move to this node, as those of a node that is gone do.
pub const STREAMS_SPARE: usize = 2_500;

/// Attempts that may fail when the job does not say.
pub const MAX_ATTEMPTS_DEFAULT: u32 = 25;
/// The most attempts that a job may ask for.
pub const MAX_ATTEMPTS_MAX: u32 = 1_000_000;
/// Leases of a job that may be lost; one more and it is FAILED, as its handler seems to kill its workers.
pub const LOST_LEASES_MAX: u32 = 5;
/// Wait after the first failure.
pub const BACKOFF_INITIAL: Duration = Duration::from_secs(15);
/// No backoff is longer, unless the job says so.
pub const BACKOFF_MAX: Duration = DAY;
/// Growth of the backoff from one failure to the next.
pub const BACKOFF_FACTOR: f64 = 2.0;
/// The largest growth that a job may ask for.
pub const BACKOFF_FACTOR_MAX: f64 = 100.0;
/// The largest share of a backoff that chance takes off, so that jobs that failed together do not return together.
pub const BACKOFF_JITTER: f64 = 0.1;
/// Shortest backoff that a job may ask for.
pub const BACKOFF_MIN: Duration = Duration::from_millis(1);
/// Longest backoff, timeout or `retry_after`.
pub const ATTEMPT_SPAN_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Longest delay and retention, and how far ahead a run time may lie.
pub const SPAN_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// Shortest time in which a job may ask to be begun.
pub const EXPIRE_IN_MIN: Duration = Duration::from_millis(1);
/// Execution time of one attempt when the job does not say.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60 * 60);
/// How long a final job is kept when it does not say.
pub const RETENTION_DEFAULT: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Delay that the second release in a row gets at least; it doubles with each.
pub const RELEASE_FLOOR: Duration = Duration::from_secs(1);
/// The floor of a release grows no further.
pub const RELEASE_FLOOR_MAX: Duration = Duration::from_secs(60);

/// An id given by a client is accepted for so long after the time it carries.
pub const ID_AGE_MAX: Duration = Duration::from_secs(60 * 60);
/// An id given by a client may be so far ahead of the database's clock.
pub const ID_AHEAD_MAX: Duration = Duration::from_secs(5 * 60);
/// A job stays at least so long after it was enqueued: longer than its id is accepted, so that no id lives twice.
pub const ROW_AGE_MIN: Duration = Duration::from_secs(70 * 60);

/// How long a lease lives without a heartbeat, when the worker has no wish.
pub const LEASE_TTL_DEFAULT: Duration = Duration::from_secs(30);
/// Shortest lease that a worker may wish for.
pub const LEASE_TTL_MIN: Duration = Duration::from_secs(10);
/// Longest lease that a worker may wish for.
pub const LEASE_TTL_MAX: Duration = Duration::from_secs(600);
/// Heartbeats in one TTL.
pub const HEARTBEATS_PER_TTL: u32 = 3;
/// A stream must say Hello within this.
pub const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// Running jobs of a session that are shown, the oldest attempts.
pub const RUNNING_SHOWN: usize = 1_000;
/// Longest wait of one GetJob.
pub const WAIT_MAX: Duration = Duration::from_secs(60);
/// Calls on one node that watch a job or a queue, or wait for a job's end.
pub const WATCHERS_MAX: usize = 10_000;
/// Who watches hears something so often, if only that nothing has changed.
pub const WATCH_KEEPALIVE: Duration = Duration::from_secs(20);
/// A watch ends at the first keepalive after a node could not look at the store for so long: another node may.
pub const WATCH_BLIND_MAX: Duration = Duration::from_secs(60);

/// Distinct queues and kinds that metrics show; the rest is "other".
pub const METRIC_NAMES_MAX: usize = 200;
