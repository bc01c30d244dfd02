-- expire_time is what was asked for. expire_at is the same for as long as it counts: a grant leaves it alone, so that it
-- stays HOT; an ending, the sweep at that time or a retry by hand clears it. Jobs without one pay nothing: what does not
-- change in an indexed column costs no HOT update.
ALTER TABLE jobs ADD COLUMN expire_time bigint, ADD COLUMN expire_at bigint;
CREATE INDEX jobs_expire ON jobs (expire_at) WHERE expire_at IS NOT NULL;
