-- Ids are random for the most part: to compress an array of a thousand takes Postgres 0.8 ms and gains nothing. So where
-- tables of batches have such a column, it is out of line as it is. Sessions repeat, and are compressed.
ALTER TABLE backlog ALTER COLUMN jobs SET STORAGE EXTERNAL;
ALTER TABLE grants ALTER COLUMN jobs SET STORAGE EXTERNAL;
ALTER TABLE finished ALTER COLUMN jobs SET STORAGE EXTERNAL;
