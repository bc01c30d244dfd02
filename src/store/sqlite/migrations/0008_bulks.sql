-- One action on many jobs. Whoever goes on with one takes the next number of `claim`, and what he does under an older one
-- changes nothing.
CREATE TABLE bulks (
  id BLOB NOT NULL PRIMARY KEY,
  create_time INTEGER NOT NULL,
  end_time INTEGER,
  due_time INTEGER NOT NULL,
  claimed_until INTEGER NOT NULL DEFAULT 0,
  claim INTEGER NOT NULL DEFAULT 0,
  action INTEGER NOT NULL,
  priority INTEGER,
  dry_run INTEGER NOT NULL,
  rate INTEGER,
  canary_size INTEGER,
  -- As text, which gives back the very same number.
  canary_share TEXT,
  canary_within INTEGER,
  state INTEGER NOT NULL,
  total INTEGER NOT NULL DEFAULT 0,
  done INTEGER NOT NULL DEFAULT 0,
  skipped INTEGER NOT NULL DEFAULT 0,
  failed INTEGER NOT NULL DEFAULT 0,
  stage_size INTEGER NOT NULL DEFAULT 0,
  stage_released INTEGER NOT NULL DEFAULT 0,
  stage_settled INTEGER NOT NULL DEFAULT 0,
  stage_failed INTEGER NOT NULL DEFAULT 0,
  stage_until INTEGER,
  -- Its walk goes on below this id.
  before BLOB,
  sample TEXT NOT NULL DEFAULT '[]',
  filter TEXT NOT NULL,
  actor TEXT NOT NULL,
  reason TEXT NOT NULL,
  error TEXT NOT NULL DEFAULT ''
) STRICT, WITHOUT ROWID;
CREATE INDEX bulks_live ON bulks (due_time) WHERE end_time IS NULL;

-- What a bulk covers, [id, revision] for each job: the oldest jobs in the row with the highest number. It has come to the
-- first `used` of them. Those that the stage of a canary has released are in rows of their own.
CREATE TABLE bulk_chunks (
  bulk BLOB NOT NULL,
  released INTEGER NOT NULL,
  number INTEGER NOT NULL,
  used INTEGER NOT NULL DEFAULT 0,
  jobs TEXT NOT NULL,
  PRIMARY KEY (bulk, released, number)
) STRICT;
