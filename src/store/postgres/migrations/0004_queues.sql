-- What somebody has set of a queue. One without a row has the default, and a row that says nothing but the default goes
-- after a while. `revision` is the number of the change that made it. NULL: the service's default; a timeout of 0: none.
CREATE TABLE queues (
  queue text NOT NULL,
  revision bigint NOT NULL,
  changed_at bigint NOT NULL,
  paused boolean NOT NULL,
  priority smallint,
  max_attempts int,
  backoff_initial bigint,
  backoff_max bigint,
  backoff_factor float8,
  timeout bigint,
  retention bigint,
  CONSTRAINT queues_pkey PRIMARY KEY (queue)
) WITH (fillfactor = 70);

-- The number of the newest change of any queue. Whoever changes one locks this row first, so that the numbers come to be
-- in the order of the commits: a node that knows this number knows all settings.
CREATE TABLE queue_changes (
  one boolean NOT NULL DEFAULT true CHECK (one),
  number bigint NOT NULL,
  CONSTRAINT queue_changes_pkey PRIMARY KEY (one)
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
INSERT INTO queue_changes (number) VALUES (0);

-- What was changed by hand, the newest 10,000.
CREATE TABLE audit (
  id bigint GENERATED ALWAYS AS IDENTITY,
  create_time bigint NOT NULL,
  count bigint NOT NULL,
  action smallint NOT NULL,
  subject text NOT NULL,
  actor text NOT NULL,
  reason text NOT NULL,
  CONSTRAINT audit_pkey PRIMARY KEY (id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
