-- Which jobs have a label, in the order of their ids. Only for jobs that have labels; a label stands here by its number,
-- since it may be longer than an index takes. Numbers may be the same by chance: who reads them looks at the job's own
-- labels. (A node of an earlier version that still runs while this is done does not write here.)
CREATE FUNCTION lh_label(key text, value text) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
  SELECT ('x' || substr(md5(length(key) || ':' || key || value), 1, 16))::bit(64)::bigint $$;
CREATE TABLE job_labels (
  label bigint NOT NULL,
  job uuid NOT NULL,
  CONSTRAINT job_labels_pkey PRIMARY KEY (label, job)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_cost_delay = 1,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000);
INSERT INTO job_labels (label, job)
SELECT lh_label(e.key, e.value), j.id FROM jobs j CROSS JOIN jsonb_each_text(j.labels) AS e WHERE j.labels IS NOT NULL
ON CONFLICT DO NOTHING;
