-- The nodes that are there, as they tell every two seconds. drain_time: somebody has asked that it leaves.
CREATE TABLE nodes (
  id uuid NOT NULL,
  start_time bigint NOT NULL,
  seen_time bigint NOT NULL,
  drain_time bigint,
  sessions int NOT NULL,
  draining boolean NOT NULL,
  name text NOT NULL,
  version text NOT NULL,
  CONSTRAINT nodes_pkey PRIMARY KEY (id)
) WITH (fillfactor = 30, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- The same of a session: it gets no more jobs. Renewals do not touch it, and stay HOT.
ALTER TABLE sessions ADD COLUMN drain_time bigint;
CREATE INDEX sessions_draining ON sessions (id) WHERE drain_time IS NOT NULL;
