-- Which jobs have a label, in the order of their ids.
CREATE TABLE job_labels (
  key TEXT NOT NULL,
  value TEXT NOT NULL,
  id BLOB NOT NULL,
  PRIMARY KEY (key, value, id)
) STRICT, WITHOUT ROWID;
INSERT INTO job_labels (key, value, id) SELECT e.key, e.value, p.id FROM payloads p, json_each(p.labels) AS e;
