-- Takes hints of some queues for one node, in one step.
--
-- KEYS: the marker; then the lines: all queues of the highest level, all of the next in the same order, and so on.
-- ARGV: the epoch; the taker; since how many milliseconds an entry must lie on the shelf; then for each queue how many
-- hints are wanted over all its levels.
--
-- Answers nil when the epoch is another; the error of the first command that failed; else one string for each line:
-- place, "=" and the 16 bytes of the job's id, again and again. Flat strings cost both sides less than nested lists.
local marker = redis.pcall('GET', KEYS[1])
if type(marker) ~= 'string' or string.sub(marker, 1, #ARGV[1]) ~= ARGV[1] then
  return false
end

-- Appends entries to a list of text, those that are not ours left out. Returns how many it appended.
local function add(text, entries)
  local before = #text
  local at = before
  for n = 1, #entries do
    local entry = entries[n]
    local fields = entry and entry[2]
    if fields and fields[1] == 'j' and #fields[2] == 16 then
      text[at + 1] = entry[1]
      text[at + 2] = '='
      text[at + 3] = fields[2]
      at = at + 3
    end
  end
  return (at - before) / 3
end

local queues = #ARGV - 3
local left = {}
for queue = 1, queues do
  left[queue] = tonumber(ARGV[queue + 3])
end
-- What `line` still gives of a queue, put into `text`; nil, or the error that a command ended with.
local function take(line, queue, text)
  local shelved = redis.pcall('XPENDING', line, 'nodes', '-', '+', left[queue], 'put-back')
  if shelved.err then
    return shelved
  end
  if #shelved > 0 then
    local places = {}
    for n, row in ipairs(shelved) do
      places[n] = row[1]
    end
    local claimed = redis.pcall('XCLAIM', line, 'nodes', ARGV[2], ARGV[3], unpack(places))
    if claimed.err then
      return claimed
    end
    left[queue] = left[queue] - add(text, claimed)
  end
  if left[queue] > 0 then
    local read = redis.pcall('XREADGROUP', 'GROUP', 'nodes', ARGV[2], 'COUNT', left[queue], 'STREAMS', line, '>')
    if read then
      if read.err then
        return read
      end
      left[queue] = left[queue] - add(text, read[1][2])
    end
  end
end

local answer, empty = {}, {}
for at = 2, #KEYS do
  local line, queue = KEYS[at], (at - 2) % queues + 1
  local text = {}
  if left[queue] > 0 then
    -- What is held or on the shelf is still in the stream: an empty one has nothing at all, and asking costs little.
    local length = redis.pcall('XLEN', line)
    if length == 0 then
      empty[#empty + 1] = line
    else
      local fault = type(length) == 'table' and length or take(line, queue, text)
      if fault then
        return fault
      end
    end
  end
  answer[at - 1] = table.concat(text)
end
-- A stream that is gone looks empty too.
if #empty > 0 and redis.call('EXISTS', unpack(empty)) < #empty then
  return redis.error_reply('NOGROUP a line is gone')
end
return answer
