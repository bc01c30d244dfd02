-- A key is taken for as long as its job's row is there. The column never changes, and only rows that have a key are in the
-- index, so that all others pay nothing for it and grant and success stay HOT.
ALTER TABLE jobs ADD COLUMN idempotency_key text;
CREATE UNIQUE INDEX jobs_idempotency_key ON jobs (queue, idempotency_key) WHERE idempotency_key IS NOT NULL;
