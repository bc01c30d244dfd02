-- The node that has the file, as it tells every two seconds. drain_time: somebody has asked that it leaves.
CREATE TABLE nodes (
  id BLOB NOT NULL PRIMARY KEY,
  start_time INTEGER NOT NULL,
  seen_time INTEGER NOT NULL,
  drain_time INTEGER,
  sessions INTEGER NOT NULL,
  draining INTEGER NOT NULL,
  name TEXT NOT NULL,
  version TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- The same of a session: it gets no more jobs.
ALTER TABLE sessions ADD COLUMN drain_time INTEGER;
CREATE INDEX sessions_draining ON sessions (id) WHERE drain_time IS NOT NULL;
