-- What went on in queues, as nodes tell of it every few seconds: a row is one node and span, and it is kept for minutes. A
-- node that has nothing to tell writes none. The span is by the node's clock, its end by this one.
CREATE TABLE queue_flows (
  id bigint GENERATED ALWAYS AS IDENTITY,
  ended_at bigint NOT NULL,
  span bigint NOT NULL,
  queues text[] NOT NULL,
  -- For each of the queues.
  enqueued bigint[] NOT NULL,
  started bigint[] NOT NULL,
  succeeded bigint[] NOT NULL,
  failed bigint[] NOT NULL,
  CONSTRAINT queue_flows_pkey PRIMARY KEY (id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
CREATE INDEX queue_flows_ended ON queue_flows (ended_at);
