-- Of a queue's jobs that say nothing of it: how long after they are due they may still begin.
ALTER TABLE queues ADD COLUMN expire_in INTEGER;
