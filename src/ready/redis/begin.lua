-- Sets a new marker if the present one is still what was found, and wakes all doorbells: of many nodes that try, one does.
--
-- KEYS: the marker; the bell. ARGV: what was found, empty for none; the new marker; who sets it; how long the bell is.
--
-- Answers 1, or nil when somebody else was first.
local found = redis.pcall('GET', KEYS[1])
-- What is no string is no marker, and SET replaces it.
if (type(found) == 'string' and found or '') ~= ARGV[1] then
  return false
end
redis.call('SET', KEYS[1], ARGV[2])
-- A bell of another type is put right by the next nudge.
redis.pcall('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', 'epoch', ARGV[3])
return 1
