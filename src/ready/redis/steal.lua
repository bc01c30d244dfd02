-- Takes over entries that a taker has had for long, in one step.
--
-- KEYS: the marker; then the lines. ARGV: the epoch; the taker; for how many milliseconds they must be idle; as how long
-- an entry counts on the shelf; how many hints of a line at most.
--
-- Answers nil when the epoch is another; the error of the first command that failed; else one string for each line: what
-- was taken of it, marked "=".
local marker = redis.pcall('GET', KEYS[1])
if type(marker) ~= 'string' or string.sub(marker, 1, #ARGV[1]) ~= ARGV[1] then
  return false
end
local answer = {}
for n = 2, #KEYS do
  local line, most, text = KEYS[n], tonumber(ARGV[5]), {}
  local pending = redis.pcall('XPENDING', line, 'nodes', 'IDLE', ARGV[3], '-', '+', most)
  if pending.err then
    return pending
  end
  local _, fault = claim(line, pending, ARGV[2], ARGV[3], text, most, '=', ARGV[4])
  if fault then
    return fault
  end
  answer[n - 1] = table.concat(text)
end
return answer
