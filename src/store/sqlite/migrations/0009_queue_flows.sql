-- What went on in queues, as the node tells of it every few seconds: a row is one span, and it is kept for minutes. When there
-- is nothing to tell, there is none.
CREATE TABLE queue_flows (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  end_time INTEGER NOT NULL,
  span INTEGER NOT NULL,
  -- [queue, enqueued, started, succeeded, failed] for each of the queues.
  flows TEXT NOT NULL
) STRICT;
CREATE INDEX queue_flows_by_time ON queue_flows (end_time);
