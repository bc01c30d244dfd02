-- A unique key is held until its job is final.
ALTER TABLE jobs ADD COLUMN unique_key TEXT;
ALTER TABLE jobs ADD COLUMN replaced_by BLOB;
-- Of a job that a hand made as a copy of another.
ALTER TABLE jobs ADD COLUMN copied_from BLOB;
CREATE UNIQUE INDEX jobs_unique_key ON jobs (queue, unique_key) WHERE unique_key IS NOT NULL AND state < 4;

-- Ids of jobs that were deleted, until they are too old to be sent again.
CREATE TABLE deleted (
  id BLOB NOT NULL PRIMARY KEY,
  purge_time INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX deleted_to_purge ON deleted (purge_time);
