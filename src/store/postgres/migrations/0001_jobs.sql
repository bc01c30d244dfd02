-- One row a job with HOT updates, and append-only logs of batches beside it.
-- All moments are microseconds since 1970 and all spans microseconds, as in SQLite and in Rust: sums need no interval
-- arithmetic (which goes through floating point), and the two stores can be read side by side. For people there is
-- the view jobs_readable.

-- The one place where time comes from. Tests replace it by one with an offset; nothing else may read a clock.
CREATE FUNCTION lh_now() RETURNS timestamptz LANGUAGE sql VOLATILE AS $$ SELECT clock_timestamp() $$;
CREATE FUNCTION lh_us() RETURNS bigint LANGUAGE sql VOLATILE AS $$ SELECT (extract(epoch FROM lh_now()) * 1000000)::bigint $$;

-- The wait after a failure: least(most, initial * factor ^ (failures - 1)), less up to a tenth. The logarithms keep
-- power() from overflowing.
CREATE FUNCTION lh_backoff(initial bigint, most bigint, factor float8, failures int, chance float8) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
  SELECT ((CASE
    WHEN ln(greatest(initial, 1)::float8) + (failures - 1) * ln(greatest(factor, 1e-9)) > ln(greatest(most, 1)::float8)
      THEN most::float8
    WHEN ln(greatest(initial, 1)::float8) + (failures - 1) * ln(greatest(factor, 1e-9)) < 0 THEN 0
    ELSE initial * power(factor, failures - 1) END) * (1 - 0.1 * chance))::bigint $$;

-- The shortest delay of a release after so many in a row: 0, then 1 s, 2 s, 4 s up to 1 min.
CREATE FUNCTION lh_release_floor(before int) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN before <= 0 THEN 0 ELSE least(60000000, 1000000 * (1 << least(before - 1, 6))::bigint) END $$;

-- No index names a column that grant or success touches, nor does the predicate of a partial one: so both are HOT.
-- Less than a third of a page is filled, since a row grows through three versions (enqueued, granted, succeeded), and while others
-- write, none of them can be removed before the last is there: at 50 a quarter of the successes found no room.
-- Output and payload are the last columns, in this order, and are kept out of line uncompressed when large.
CREATE TABLE jobs (
  id uuid NOT NULL,
  session uuid,
  revision bigint NOT NULL DEFAULT 1,
  create_time bigint NOT NULL,
  run_time bigint NOT NULL,
  queued_time bigint,
  start_time bigint,
  timeout_time bigint,
  finish_time bigint,
  purge_time bigint,
  due_at bigint,
  failed_at bigint,
  timeout bigint,
  retention bigint NOT NULL,
  backoff_initial bigint NOT NULL,
  backoff_max bigint NOT NULL,
  backoff_factor float8 NOT NULL,
  attempt int NOT NULL DEFAULT 0,
  failures int NOT NULL DEFAULT 0,
  lost_leases int NOT NULL DEFAULT 0,
  releases int NOT NULL DEFAULT 0,
  released_in_row int NOT NULL DEFAULT 0,
  max_attempts int NOT NULL,
  state smallint NOT NULL,
  priority smallint NOT NULL,
  payload_is_text boolean NOT NULL,
  output_is_text boolean,
  has_progress boolean NOT NULL DEFAULT false,
  queue text NOT NULL,
  kind text NOT NULL,
  worker text NOT NULL DEFAULT '',
  fingerprint bytea NOT NULL,
  labels jsonb,
  headers jsonb,
  payload_type text NOT NULL,
  output_type text,
  output bytea,
  payload bytea NOT NULL,
  CONSTRAINT jobs_pkey PRIMARY KEY (id)
) WITH (fillfactor = 31, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
        autovacuum_analyze_scale_factor = 0.05, autovacuum_analyze_threshold = 5000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000,
        autovacuum_vacuum_cost_delay = 1);
ALTER TABLE jobs ALTER COLUMN output SET STORAGE EXTERNAL, ALTER COLUMN payload SET STORAGE EXTERNAL;
CREATE INDEX jobs_queue ON jobs (queue, id);
CREATE INDEX jobs_due ON jobs (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX jobs_failed ON jobs (id) WHERE failed_at IS NOT NULL;
CREATE INDEX jobs_failed_queue ON jobs (queue, id) WHERE failed_at IS NOT NULL;

-- Attempts that did not succeed: history, and verdicts for copies.
CREATE TABLE attempts (
  job uuid NOT NULL,
  attempt int NOT NULL,
  outcome smallint NOT NULL,
  permanent boolean NOT NULL DEFAULT false,
  session uuid NOT NULL,
  start_time bigint NOT NULL,
  end_time bigint NOT NULL,
  retry_after bigint,
  worker text NOT NULL,
  failure_type text,
  message text,
  detail text,
  CONSTRAINT attempts_pkey PRIMARY KEY (job, attempt)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_cost_delay = 1);

-- What attempts have come to: only for jobs that say so (jobs.has_progress), so that the others pay nothing for it.
CREATE TABLE progress (
  job uuid NOT NULL,
  revision bigint NOT NULL,
  percent smallint,
  note text,
  checkpoint bytea,
  CONSTRAINT progress_pkey PRIMARY KEY (job)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 1);
ALTER TABLE progress ALTER COLUMN checkpoint SET STORAGE EXTERNAL;

-- QUEUED implies a row here. epoch of zeros: not offered. created_at equals queued_time of the jobs it counts for: a
-- job that was QUEUED again counts in its newest segment alone.
CREATE TABLE backlog (
  id bigint GENERATED ALWAYS AS IDENTITY,
  created_at bigint NOT NULL,
  check_at bigint NOT NULL,
  claim_until bigint NOT NULL DEFAULT 0,
  offered_at bigint,
  last_ms bigint NOT NULL DEFAULT 0,
  last_seq bigint NOT NULL DEFAULT 0,
  epoch uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
  checks smallint NOT NULL DEFAULT 0,
  priority smallint NOT NULL,
  queue text NOT NULL,
  jobs uuid[] NOT NULL,
  CONSTRAINT backlog_pkey PRIMARY KEY (id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 1);
CREATE INDEX backlog_epoch ON backlog (epoch, id);
CREATE INDEX backlog_line ON backlog (queue, priority, id);
CREATE INDEX backlog_offer ON backlog (queue, priority, epoch, last_ms, last_seq);
CREATE INDEX backlog_check ON backlog (check_at);

-- RUNNING implies a row here: one flush of one node.
CREATE TABLE grants (
  id bigint GENERATED ALWAYS AS IDENTITY,
  created_at bigint NOT NULL,
  check_at bigint NOT NULL,
  node uuid NOT NULL,
  checks smallint NOT NULL DEFAULT 0,
  jobs uuid[] NOT NULL,
  sessions uuid[] NOT NULL,
  CONSTRAINT grants_pkey PRIMARY KEY (id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 1);
CREATE INDEX grants_node ON grants (node, id);
CREATE INDEX grants_check ON grants (check_at);

-- Final implies a row here, by the hour in which its jobs are purged.
CREATE TABLE finished (
  id bigint GENERATED ALWAYS AS IDENTITY,
  check_at bigint NOT NULL,
  bucket bigint NOT NULL,
  size int NOT NULL,
  jobs uuid[] NOT NULL,
  CONSTRAINT finished_pkey PRIMARY KEY (id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 1);
CREATE INDEX finished_check ON finished (check_at);
CREATE INDEX finished_small ON finished (bucket, id) WHERE size < 100;

-- Deltas; one compactor sums them up. The columns are the states, in the order of their numbers.
CREATE TABLE queue_counts (
  id bigint GENERATED ALWAYS AS IDENTITY,
  queue text NOT NULL,
  scheduled bigint NOT NULL DEFAULT 0, queued bigint NOT NULL DEFAULT 0, running bigint NOT NULL DEFAULT 0,
  succeeded bigint NOT NULL DEFAULT 0, failed bigint NOT NULL DEFAULT 0, cancelled bigint NOT NULL DEFAULT 0,
  CONSTRAINT queue_counts_pkey PRIMARY KEY (id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 1);

-- Leases. No index but the key: renewals are HOT.
CREATE TABLE sessions (
  id uuid NOT NULL,
  attach bigint NOT NULL,
  ttl bigint NOT NULL,
  expires_at bigint NOT NULL,
  opened_at bigint NOT NULL,
  dead_at bigint,
  lost_in_outage boolean NOT NULL DEFAULT false,
  node uuid NOT NULL,
  nodes uuid[] NOT NULL,
  worker text NOT NULL,
  sdk text NOT NULL,
  CONSTRAINT sessions_pkey PRIMARY KEY (id)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 1);

-- Liveness of the whole: touched every second by whoever is alive. The last outage was from gap_from to grace_until.
CREATE TABLE pulse (
  one boolean NOT NULL DEFAULT true CHECK (one),
  touched_at bigint,
  gap_from bigint NOT NULL DEFAULT 0,
  grace_until bigint NOT NULL DEFAULT 0,
  CONSTRAINT pulse_pkey PRIMARY KEY (one)
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
INSERT INTO pulse DEFAULT VALUES;

-- What nodes tell each other; read by a window of the last seconds.
CREATE TABLE signals (
  id bigint GENERATED ALWAYS AS IDENTITY,
  created_at bigint NOT NULL,
  job uuid NOT NULL,
  session uuid NOT NULL,
  attempt int NOT NULL,
  CONSTRAINT signals_pkey PRIMARY KEY (id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX signals_created ON signals (created_at);

CREATE VIEW jobs_readable AS
SELECT id, queue, kind, priority,
       (ARRAY['SCHEDULED', 'QUEUED', 'RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELLED'])[state] AS state,
       attempt, failures, lost_leases, releases, worker, session,
       to_timestamp(create_time / 1e6) AS create_time, to_timestamp(run_time / 1e6) AS run_time,
       to_timestamp(start_time / 1e6) AS start_time, to_timestamp(finish_time / 1e6) AS finish_time,
       to_timestamp(purge_time / 1e6) AS purge_time
  FROM jobs;
