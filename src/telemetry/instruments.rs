//! Every metric there is, in one list: its name, labels and meaning. [`super::metrics`] fills them.

/// How a metric behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution of seconds.
    Seconds,
    /// A distribution of counts.
    Sizes,
}

impl Shape {
    /// Its name in the text format.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Seconds | Self::Sizes => "histogram",
        }
    }
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Instrument {
    /// Its name, with its unit.
    pub name: &'static str,
    /// How it behaves.
    pub shape: Shape,
    /// Its labels. No job, session or worker is ever one.
    pub labels: &'static [&'static str],
    /// What it counts.
    pub help: &'static str,
}

macro_rules! instruments {
    ($($key:ident = $name:literal $shape:ident [$($label:literal)*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $key: Instrument = Instrument {
                name: $name,
                shape: Shape::$shape,
                labels: &[$($label),*],
                help: $help,
            };
        )*
        /// All of them, in the order of the reference.
        pub const ALL: &[Instrument] = &[$($key),*];
    };
}

instruments! {
    ENQUEUED = "leasehold_jobs_enqueued_total" Counter ["queue"] "Jobs accepted by this node; a repeated request counts once.";
    STARTED = "leasehold_jobs_started_total" Counter ["queue"] "Attempts handed out by this node.";
    FINISHED = "leasehold_jobs_finished_total" Counter ["queue" "outcome"] "Attempts whose end this node recorded, by outcome.";
    EXTRA_EXECUTIONS = "leasehold_extra_executions_total" Counter [] "Jobs taken back from a lost lease for another attempt: work that may be done twice.";
    QUEUE_JOBS = "leasehold_queue_jobs" Gauge ["queue" "state"] "Jobs in a queue, by state; the same on every node.";
    QUEUE_OLDEST = "leasehold_queue_oldest_seconds" Gauge ["queue"] "Age of the oldest job that waits for a worker; the same on every node.";
    HANDOUT = "leasehold_handout_seconds" Seconds ["queue"] "From the time a job was due to its hand-out.";
    RUN = "leasehold_run_seconds" Seconds ["kind"] "From hand-out to the recorded end of an attempt.";
    SESSIONS = "leasehold_sessions" Gauge [] "Sessions of workers that this node has.";
    STREAMS = "leasehold_streams" Gauge [] "Open streams of workers on this node.";
    IN_FLIGHT = "leasehold_jobs_in_flight" Gauge [] "Leases held by the sessions of this node.";
    WATCHERS = "leasehold_watchers" Gauge [] "Calls on this node that watch a job or a queue, or wait for a job's end.";
    STORE_SECONDS = "leasehold_store_seconds" Seconds ["verb"] "Latency of the store.";
    STORE_ERRORS = "leasehold_store_errors_total" Counter ["verb" "reason"] "Calls of the store that failed.";
    READY_SECONDS = "leasehold_ready_list_seconds" Seconds ["verb"] "Latency of the ready-list.";
    READY_ERRORS = "leasehold_ready_list_errors_total" Counter ["verb" "reason"] "Calls of the ready-list that failed.";
    READY_DEGRADED = "leasehold_ready_list_degraded" Gauge [] "1 while the ready-list is away or full and jobs are claimed from the store.";
    DIRECT_CLAIMS = "leasehold_direct_claims_total" Counter [] "Jobs claimed from the store because the ready-list was away.";
    BATCH_JOBS = "leasehold_batch_jobs" Sizes ["batch"] "Items that one write to the store carried.";
    RESENT = "leasehold_jobs_resent_total" Counter [] "Jobs pushed again under the lease that they had: their worker resumed without them.";
    REOFFERED = "leasehold_reoffered_total" Counter [] "Jobs that reconcile offered to the ready-list again.";
    SESSIONS_EXPIRED = "leasehold_sessions_expired_total" Counter [] "Sessions that ended because nobody renewed them.";
    LEASES_LOST = "leasehold_leases_lost_total" Counter [] "Jobs taken back from sessions that ended.";
    FAILED_REQUESTS = "leasehold_failed_requests_total" Counter ["face" "reason"] "Calls answered with an error, by its stable word.";
}

/// The reference of all metrics, as a table for the documentation.
pub fn reference_markdown() -> String {
    let mut table = String::from("| Metric | Type | Labels | Meaning |\n|---|---|---|---|\n");
    for Instrument {
        name,
        shape,
        labels,
        help,
    } in ALL
    {
        let shape = shape.name();
        let labels = labels.join(", ");
        table.push_str(&format!("| `{name}` | {shape} | {labels} | {help} |\n"));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_they_are_and_are_unique() {
        let mut names: Vec<_> = ALL.iter().map(|i| i.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        for one in ALL {
            assert!(one.name.starts_with("leasehold_"), "{}", one.name);
            assert_eq!(
                one.name.ends_with("_total"),
                one.shape == Shape::Counter,
                "{}",
                one.name
            );
            assert!(one.help.ends_with('.'), "{}", one.name);
            assert!(reference_markdown().contains(one.name));
        }
    }
}
