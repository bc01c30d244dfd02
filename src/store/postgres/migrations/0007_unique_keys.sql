-- unique_key is what was asked for. unique_held is the same for as long as the job holds it, which is until it is final:
-- what ends a job clears it. Jobs without a key pay nothing for that: what does not change in an indexed column costs no
-- HOT update.
ALTER TABLE jobs ADD COLUMN unique_key text, ADD COLUMN unique_held text, ADD COLUMN replaced_by uuid;
CREATE UNIQUE INDEX jobs_unique_key ON jobs (queue, unique_held) WHERE unique_held IS NOT NULL;

-- Of a job that a hand made as a copy of another.
ALTER TABLE jobs ADD COLUMN copied_from uuid;
