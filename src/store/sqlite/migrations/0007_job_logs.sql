-- What attempts say on the way. `attempt` said the newest line, whose number is `said`; the numbers of that attempt's lines
-- begin above `base`. `kept` and `bytes` are of what log_lines has of the job.
CREATE TABLE job_logs (
  job BLOB NOT NULL PRIMARY KEY,
  attempt INTEGER NOT NULL,
  base INTEGER NOT NULL,
  said INTEGER NOT NULL,
  kept INTEGER NOT NULL,
  bytes INTEGER NOT NULL
) STRICT;

CREATE TABLE log_lines (
  job BLOB NOT NULL,
  number INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  time INTEGER NOT NULL,
  level INTEGER NOT NULL,
  message TEXT NOT NULL,
  PRIMARY KEY (job, number)
) STRICT, WITHOUT ROWID;
