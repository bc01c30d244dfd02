-- What attempts say on the way. Only jobs that say something have rows here (jobs.has_log): the others pay nothing for it.
ALTER TABLE jobs ADD COLUMN has_log boolean NOT NULL DEFAULT false;

-- One row a job. `attempt` said the newest line, whose number is `said`; the numbers of that attempt's lines begin above
-- `base`; before the last write it was `said_before`. `kept` and `bytes` are not below what log_lines has of it. The job of one that is `gone` is no more.
CREATE TABLE job_logs (
  job uuid NOT NULL,
  base bigint NOT NULL,
  said bigint NOT NULL,
  said_before bigint NOT NULL,
  kept bigint NOT NULL,
  bytes bigint NOT NULL,
  attempt int NOT NULL,
  gone boolean NOT NULL DEFAULT false,
  CONSTRAINT job_logs_pkey PRIMARY KEY (job)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 1);
CREATE INDEX job_logs_gone ON job_logs (job) WHERE gone;

CREATE TABLE log_lines (
  job uuid NOT NULL,
  number bigint NOT NULL,
  time bigint NOT NULL,
  attempt int NOT NULL,
  level smallint NOT NULL,
  message text NOT NULL,
  CONSTRAINT log_lines_pkey PRIMARY KEY (job, number)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_insert_scale_factor = 0,
        autovacuum_vacuum_insert_threshold = 100000, autovacuum_vacuum_cost_delay = 1);
