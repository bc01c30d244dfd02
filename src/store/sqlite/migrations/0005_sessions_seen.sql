-- What nodes tell of the sessions whose streams they have, for people: it decides nothing. Of a session that was just
-- opened it is NULL.
ALTER TABLE sessions ADD COLUMN node_name TEXT;
ALTER TABLE sessions ADD COLUMN kinds TEXT;
ALTER TABLE sessions ADD COLUMN labels TEXT;
-- [queue, how many at most or null, how many just then] for each queue that it takes jobs of.
ALTER TABLE sessions ADD COLUMN queues TEXT;
ALTER TABLE sessions ADD COLUMN max_in_flight INTEGER;
ALTER TABLE sessions ADD COLUMN in_flight INTEGER;
ALTER TABLE sessions ADD COLUMN draining INTEGER;
