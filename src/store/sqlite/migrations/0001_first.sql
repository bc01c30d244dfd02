-- Ids are 16-byte blobs, moments microseconds since 1970, spans microseconds.

-- One job, all that its transitions touch and nothing large: an UPDATE rewrites the whole record.
CREATE TABLE jobs (
  id BLOB NOT NULL PRIMARY KEY,
  queue TEXT NOT NULL,
  kind TEXT NOT NULL,
  priority INTEGER NOT NULL,
  state INTEGER NOT NULL,
  revision INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  failures INTEGER NOT NULL,
  lost_leases INTEGER NOT NULL,
  releases INTEGER NOT NULL,
  -- Releases in a row, for the floor under the next one's delay.
  released_in_row INTEGER NOT NULL,
  max_attempts INTEGER NOT NULL,
  backoff_initial INTEGER NOT NULL,
  backoff_max INTEGER NOT NULL,
  -- As text, which gives back the very same number.
  backoff_factor TEXT NOT NULL,
  timeout INTEGER,
  retention INTEGER NOT NULL,
  fingerprint BLOB NOT NULL,
  -- RUNNING: who has it. SUCCEEDED: whose result it is. QUEUED: whose lease was lost, and nobody had it since.
  session BLOB,
  worker TEXT NOT NULL,
  create_time INTEGER NOT NULL,
  run_time INTEGER NOT NULL,
  -- When it became QUEUED, which is when its segment was made; an older segment that names it is spent.
  queue_time INTEGER,
  start_time INTEGER,
  timeout_time INTEGER,
  finish_time INTEGER,
  purge_time INTEGER,
  -- Of payload and output, to bound what one answer carries.
  bytes INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX jobs_by_queue ON jobs (queue, id);
CREATE INDEX jobs_due ON jobs (run_time) WHERE state = 1;
CREATE INDEX jobs_by_session ON jobs (session) WHERE state = 3;
CREATE INDEX jobs_to_purge ON jobs (purge_time) WHERE purge_time IS NOT NULL;

-- What is written once, at the enqueue; the body last, so that reading the rest stays cheap.
CREATE TABLE payloads (
  id BLOB NOT NULL PRIMARY KEY,
  labels TEXT NOT NULL,
  headers TEXT NOT NULL,
  content_type TEXT NOT NULL,
  is_text INTEGER NOT NULL,
  data BLOB NOT NULL
) STRICT;

-- What attempts have come to, where they say so.
CREATE TABLE progress (
  id BLOB NOT NULL PRIMARY KEY,
  revision INTEGER NOT NULL,
  percent INTEGER,
  note TEXT,
  checkpoint BLOB
) STRICT;

-- What the handler returned, where it returned something.
CREATE TABLE outputs (
  id BLOB NOT NULL PRIMARY KEY,
  content_type TEXT NOT NULL,
  is_text INTEGER NOT NULL,
  data BLOB NOT NULL
) STRICT;

-- One attempt that did not succeed. `failure_kind` is NULL where there is no failure and no reason to tell.
CREATE TABLE attempts (
  job BLOB NOT NULL,
  attempt INTEGER NOT NULL,
  session BLOB NOT NULL,
  worker TEXT NOT NULL,
  outcome INTEGER NOT NULL,
  failure_kind TEXT,
  message TEXT,
  permanent INTEGER,
  retry_after INTEGER,
  start_time INTEGER NOT NULL,
  end_time INTEGER NOT NULL,
  detail TEXT,
  UNIQUE (job, attempt)
) STRICT;

-- A segment: the jobs that one flush made QUEUED in one line, their ids one after the other.
CREATE TABLE backlog (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  queue TEXT NOT NULL,
  priority INTEGER NOT NULL,
  create_time INTEGER NOT NULL,
  -- Until then it is lent to somebody.
  claimed_until INTEGER NOT NULL DEFAULT 0,
  -- Where it was offered: incarnation of the ready-list, entry of its last job, when.
  epoch BLOB,
  last_ms INTEGER,
  last_seq INTEGER,
  offer_time INTEGER,
  jobs BLOB NOT NULL
) STRICT;
CREATE INDEX backlog_by_line ON backlog (queue, priority, id);
CREATE INDEX backlog_by_epoch ON backlog (epoch, id);
CREATE INDEX backlog_by_offer ON backlog (queue, priority, epoch, last_ms, last_seq) WHERE epoch IS NOT NULL;

CREATE TABLE sessions (
  id BLOB NOT NULL PRIMARY KEY,
  node BLOB NOT NULL,
  worker TEXT NOT NULL,
  sdk TEXT NOT NULL,
  ttl INTEGER NOT NULL,
  attach INTEGER NOT NULL,
  expire_time INTEGER NOT NULL,
  dead INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX sessions_alive ON sessions (expire_time) WHERE dead = 0;
CREATE INDEX sessions_dead ON sessions (id) WHERE dead = 1;

CREATE TABLE signals (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  create_time INTEGER NOT NULL,
  job BLOB NOT NULL,
  attempt INTEGER NOT NULL,
  session BLOB NOT NULL
) STRICT;
CREATE INDEX signals_by_time ON signals (create_time);

-- The one row that says when somebody was last alive, and until when nobody's lease is taken.
CREATE TABLE pulse (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  touch_time INTEGER,
  grace_until INTEGER NOT NULL
) STRICT;
INSERT INTO pulse (one, touch_time, grace_until) VALUES (1, NULL, 0);

-- Jobs of each state, kept exact by the triggers below: whoever changes a job cannot forget to count it.
CREATE TABLE queue_counts (
  queue TEXT NOT NULL,
  state INTEGER NOT NULL,
  jobs INTEGER NOT NULL,
  PRIMARY KEY (queue, state)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER count_new AFTER INSERT ON jobs BEGIN
  INSERT INTO queue_counts VALUES (NEW.queue, NEW.state, 1)
    ON CONFLICT DO UPDATE SET jobs = jobs + 1;
END;
CREATE TRIGGER count_moved AFTER UPDATE OF state ON jobs WHEN OLD.state <> NEW.state BEGIN
  UPDATE queue_counts SET jobs = jobs - 1 WHERE queue = OLD.queue AND state = OLD.state;
  INSERT INTO queue_counts VALUES (NEW.queue, NEW.state, 1)
    ON CONFLICT DO UPDATE SET jobs = jobs + 1;
END;
CREATE TRIGGER count_gone AFTER DELETE ON jobs BEGIN
  UPDATE queue_counts SET jobs = jobs - 1 WHERE queue = OLD.queue AND state = OLD.state;
END;
