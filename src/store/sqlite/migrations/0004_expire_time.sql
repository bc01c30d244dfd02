-- expire_time is what was asked for; expire_at is the same for as long as it counts: a retry by hand clears it.
ALTER TABLE jobs ADD COLUMN expire_time INTEGER;
ALTER TABLE jobs ADD COLUMN expire_at INTEGER;
CREATE INDEX jobs_expire ON jobs (expire_at) WHERE expire_at IS NOT NULL AND attempt = 0 AND state < 3;
