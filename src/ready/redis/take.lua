-- Takes hints of some queues for one node, in one step.
--
-- KEYS: the marker; then the lines: all queues of the highest level, all of the next in the same order, and so on.
-- ARGV: the epoch; the taker; since how many milliseconds an entry must lie on the shelf; then for each queue how many
-- hints are wanted over all its levels, how many of them look at the levels below the highest first, and at which of
-- these first.
--
-- Answers nil when the epoch is another; the error of the first command that failed; else one string for each line:
-- place, "=" and the 16 bytes of the job's id, again and again, with "<" for "=" if it was found below the highest level
-- first. Flat strings cost both sides less than nested lists.
local marker = redis.pcall('GET', KEYS[1])
if type(marker) ~= 'string' or string.sub(marker, 1, #ARGV[1]) ~= ARGV[1] then
  return false
end

-- Appends entries to a list of text, those that are not ours left out. Returns how many it appended.
local function add(text, entries, mark)
  local before = #text
  local at = before
  for n = 1, #entries do
    local entry = entries[n]
    local fields = entry and entry[2]
    if fields and fields[1] == 'j' and #fields[2] == 16 then
      text[at + 1] = entry[1]
      text[at + 2] = mark
      text[at + 3] = fields[2]
      at = at + 3
    end
  end
  return (at - before) / 3
end

local queues = (#ARGV - 3) / 3
local levels = (#KEYS - 1) / queues
local left = {}
for queue = 1, queues do
  left[queue] = tonumber(ARGV[queue * 3 + 1])
end
local texts, empty = {}, {}
-- Puts what `line` has into `text`, `most` at most. Returns how many, and the error that a command ended with, or nil.
local function take(line, most, text, mark)
  local got = 0
  local shelved = redis.pcall('XPENDING', line, 'nodes', '-', '+', most, 'put-back')
  if shelved.err then
    return got, shelved
  end
  if #shelved > 0 then
    local places = {}
    for n, row in ipairs(shelved) do
      places[n] = row[1]
    end
    local claimed = redis.pcall('XCLAIM', line, 'nodes', ARGV[2], ARGV[3], unpack(places))
    if claimed.err then
      return got, claimed
    end
    got = add(text, claimed, mark)
  end
  if got < most then
    local read = redis.pcall('XREADGROUP', 'GROUP', 'nodes', ARGV[2], 'COUNT', most - got, 'STREAMS', line, '>')
    if read then
      if read.err then
        return got, read
      end
      got = got + add(text, read[1][2], mark)
    end
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
  local lower, first = tonumber(ARGV[queue * 3 + 2]), tonumber(ARGV[queue * 3 + 3])
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
