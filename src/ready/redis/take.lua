-- Takes hints of some queues for one node, in one step.
--
-- KEYS: the marker; then the lines: all queues of the highest level, all of the next in the same order, and so on.
-- ARGV: the epoch; the taker; since how many milliseconds an entry must lie on the shelf; as how long it counts there;
-- then for each queue how many hints are wanted over all its levels, how many of them look at the levels below the
-- highest first, and at which of these first.
--
-- Answers nil when the epoch is another; the error of the first command that failed; else one string for each line: what
-- was taken of it, marked "=", or "<" if it was found below the highest level first.
local marker = redis.pcall('GET', KEYS[1])
if type(marker) ~= 'string' or string.sub(marker, 1, #ARGV[1]) ~= ARGV[1] then
  return false
end

local queues = (#ARGV - 4) / 3
local levels = (#KEYS - 1) / queues
local left = {}
for queue = 1, queues do
  left[queue] = tonumber(ARGV[queue * 3 + 2])
end
local texts, empty = {}, {}
-- Puts what `line` has into `text`, `most` at most. Returns how many, and the error that a command ended with, or nil.
local function take(line, most, text, mark)
  local got = 0
  local shelved = redis.pcall('XPENDING', line, 'nodes', '-', '+', most, 'put-back')
  if shelved.err then
    return got, shelved
  end
  local fault, per
  got, fault, per = claim(line, shelved, ARGV[2], ARGV[3], text, most, mark, ARGV[4])
  if fault then
    return got, fault
  end
  while got < most do
    local count = math.ceil((most - got) / per)
    local read = redis.pcall('XREADGROUP', 'GROUP', 'nodes', ARGV[2], 'COUNT', count, 'STREAMS', line, '>')
    if not read then
      break
    end
    if read.err then
      return got, read
    end
    local entries = read[1][2]
    local more, refused = add(line, text, entries, {}, most - got, mark, ARGV[4])
    got = got + more
    if refused or #entries < count then
      return got, refused
    end
    per = guess(per, #entries, more)
  end
  return got
end

-- The same for a line of a queue, by its number.
local function look(queue, level, most, mark)
  local at = (level - 1) * queues + queue
  local line = KEYS[at + 1]
  -- What is held or on the shelf is still in the stream: an empty one has nothing at all, and asking costs little.
  local length = redis.pcall('XLEN', line)
  if length == 0 then
    empty[#empty + 1] = line
    return 0
  end
  if type(length) == 'table' then
    return 0, length
  end
  texts[at] = texts[at] or {}
  local got, fault = take(line, most, texts[at], mark)
  left[queue] = left[queue] - got
  return got, fault
end

for queue = 1, queues do
  local lower, first = tonumber(ARGV[queue * 3 + 3]), tonumber(ARGV[queue * 3 + 4])
  for step = 0, levels - 2 do
    if lower > 0 then
      local got, fault = look(queue, (first - 2 + step) % (levels - 1) + 2, lower, '<')
      if fault then
        return fault
      end
      lower = lower - got
    end
  end
end
for level = 1, levels do
  for queue = 1, queues do
    if left[queue] > 0 then
      local _, fault = look(queue, level, left[queue], '=')
      if fault then
        return fault
      end
    end
  end
end
-- A stream that is gone looks empty too.
if #empty > 0 and redis.call('EXISTS', unpack(empty)) < #empty then
  return redis.error_reply('NOGROUP a line is gone')
end
local answer = {}
for at = 1, #KEYS - 1 do
  answer[at] = texts[at] and table.concat(texts[at]) or ''
end
return answer
