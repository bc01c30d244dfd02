-- What somebody has set of a queue. One without a row has the default, and a row that says nothing but the default goes
-- after a while. `revision` is the number of the change that made it. NULL: the service's default; a timeout of 0: none.
CREATE TABLE queues (
  queue TEXT NOT NULL PRIMARY KEY,
  revision INTEGER NOT NULL,
  change_time INTEGER NOT NULL,
  paused INTEGER NOT NULL,
  priority INTEGER,
  max_attempts INTEGER,
  backoff_initial INTEGER,
  backoff_max INTEGER,
  -- As text, which gives back the very same number.
  backoff_factor TEXT,
  timeout INTEGER,
  retention INTEGER
) STRICT, WITHOUT ROWID;

-- The number of the newest change of any queue: a node that knows it knows all settings.
CREATE TABLE queue_changes (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  number INTEGER NOT NULL
) STRICT;
INSERT INTO queue_changes (one, number) VALUES (1, 0);

-- What was changed by hand, the newest 10,000.
CREATE TABLE audit (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  create_time INTEGER NOT NULL,
  count INTEGER NOT NULL,
  action INTEGER NOT NULL,
  subject TEXT NOT NULL,
  actor TEXT NOT NULL,
  reason TEXT NOT NULL
) STRICT;
