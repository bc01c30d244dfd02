-- One action on many jobs. Only those that have not ended are in the index: nodes look for one to go on with twice a second.
-- Whoever goes on with one takes the next number of `claim`, and what he does under an older one changes nothing.
CREATE TABLE bulks (
  id uuid NOT NULL,
  create_time bigint NOT NULL,
  end_time bigint,
  due_at bigint NOT NULL,
  claim_until bigint NOT NULL DEFAULT 0,
  claim bigint NOT NULL DEFAULT 0,
  total bigint NOT NULL DEFAULT 0,
  done bigint NOT NULL DEFAULT 0,
  skipped bigint NOT NULL DEFAULT 0,
  failed bigint NOT NULL DEFAULT 0,
  stage_until bigint,
  stage_size int NOT NULL DEFAULT 0,
  stage_released int NOT NULL DEFAULT 0,
  stage_settled int NOT NULL DEFAULT 0,
  stage_failed int NOT NULL DEFAULT 0,
  state smallint NOT NULL,
  action smallint NOT NULL,
  priority smallint,
  dry_run boolean NOT NULL,
  rate int,
  canary_size int,
  canary_share float8,
  canary_within bigint,
  -- Its walk goes on below this id.
  before uuid,
  sample uuid[] NOT NULL DEFAULT '{}',
  filter text NOT NULL,
  actor text NOT NULL,
  reason text NOT NULL,
  error text NOT NULL DEFAULT '',
  CONSTRAINT bulks_pkey PRIMARY KEY (id)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
CREATE INDEX bulks_live ON bulks (due_at) WHERE end_time IS NULL;

-- What a bulk covers, each job with the revision at which it does: up to a thousand a row, the oldest jobs in the row with
-- the highest number. It has come to the first `used` of them. Those that the stage of a canary has released are in rows
-- of their own.
CREATE TABLE bulk_chunks (
  bulk uuid NOT NULL,
  number bigint NOT NULL,
  used int NOT NULL DEFAULT 0,
  released boolean NOT NULL,
  jobs uuid[] NOT NULL,
  revisions bigint[] NOT NULL,
  CONSTRAINT bulk_chunks_pkey PRIMARY KEY (bulk, released, number)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
ALTER TABLE bulk_chunks ALTER COLUMN jobs SET STORAGE EXTERNAL;
