-- Adds jobs at the ends of lines, in one step.
--
-- KEYS: the marker; then a stream for each of the rest of ARGV.
-- ARGV: the epoch; then for each stream how many jobs an entry is to hold, and the ids of its jobs, 16 bytes each, one
-- after the other.
--
-- Answers nil when the epoch is another; an error when a stream is gone, or of the first command that failed; else the
-- place of the last entry in each stream.
local marker = redis.pcall('GET', KEYS[1])
if type(marker) ~= 'string' or string.sub(marker, 1, #ARGV[1]) ~= ARGV[1] then
  return false
end
local last = {}
for n = 2, #KEYS do
  local line, size, ids, place = KEYS[n], 16 * ARGV[2 * n - 2], ARGV[2 * n - 1], ''
  for at = 1, #ids, size do
    -- A stream that is not there is not made by the way: that would hide that it was lost.
    place = redis.pcall('XADD', line, 'NOMKSTREAM', '*', 'j', string.sub(ids, at, at + size - 1))
    if not place then
      return redis.error_reply('NOGROUP the line is gone')
    end
    if type(place) == 'table' then
      return place
    end
  end
  last[n - 1] = place
end
return last
