-- What nodes tell of the sessions whose streams they have, for people: it decides nothing. No index names a column of a
-- session, so renewals stay HOT. Of a session that was just opened, or by an older program, it is NULL.
ALTER TABLE sessions
  ADD COLUMN node_name text,
  ADD COLUMN kinds text[],
  ADD COLUMN labels jsonb,
  -- The queues that it takes jobs of; of each, how many at most (0: its window alone binds), and how many just then.
  ADD COLUMN queues text[],
  ADD COLUMN queue_max int[],
  ADD COLUMN queue_free int[],
  ADD COLUMN max_in_flight int,
  ADD COLUMN in_flight int,
  ADD COLUMN draining boolean;
