-- What the scripts know of entries; it stands before those that hand them out.
--
-- An entry's one field "j" holds up to 16 job ids of 16 bytes each. An entry of which not all is wanted goes to the shelf
-- at once, with what is handed out of it: a bit for each id, above the 16 lowest bits of its delivery count. So nobody
-- has more than was asked for, and nothing is handed out twice.
local IDS, UNIT = 16, 65536

-- Puts an entry on the shelf, where it counts as idle for `idle` milliseconds; `out` says what is handed out of it.
-- Returns the error of the command, or nil.
local function shelve(line, place, out, idle)
  local answer = redis.pcall('XCLAIM', line, 'nodes', 'put-back', 0, place, 'IDLE', idle,
    'RETRYCOUNT', string.format('%.0f', out * UNIT), 'JUSTID')
  return answer.err and answer or nil
end

-- Appends ids of entries that nobody has had to a list of text, `most` at most; what is not ours is left out. `had` says
-- by place what was handed out of an entry before. Returns how many it appended, and the error of a command or nil.
--
-- For each entry it appends: its place; `mark`; whose it is now; a letter from "A" for how many ids; and the ids. It is
-- "w" if the taker has the whole entry, whose ids follow each other. Else it is "o" if the taker has all that nobody had
-- before, or "s" if it is on the shelf for its rest, and before each id stands its number in the entry, a letter from "A".
-- Flat strings cost both sides less than nested lists.
local function add(line, text, entries, had, most, mark, idle)
  local got = 0
  for n = 1, #entries do
    local entry = entries[n]
    local fields = entry and entry[2]
    local ids = fields and fields[1] == 'j' and fields[2] or ''
    local count = #ids / 16
    if count >= 1 and count <= IDS and count % 1 == 0 then
      local place = entry[1]
      local out, part, rest = had[place] or 0, {}, false
      if out == 0 and count <= most - got then
        got = got + count
        text[#text + 1] = place .. mark .. 'w' .. string.char(64 + count)
        text[#text + 1] = ids
      else
        for id = 0, count - 1 do
          local bit = 2 ^ id
          if math.floor(out / bit) % 2 == 0 then
            rest = rest or got == most
            if not rest then
              got = got + 1
              out = out + bit
              part[#part + 1] = string.char(65 + id) .. string.sub(ids, id * 16 + 1, id * 16 + 16)
            end
          end
        end
        if #part > 0 then
          text[#text + 1] = place .. mark .. (rest and 's' or 'o') .. string.char(64 + #part)
          text[#text + 1] = table.concat(part)
        end
        local fault = rest and shelve(line, place, out, idle)
        if fault then
          return got, fault
        end
      end
    end
  end
  return got
end

-- How many ids the next entries may have, by what some had: to read too many costs more than to look again.
local function guess(before, entries, ids)
  return math.max(ids / math.max(entries, 1), before / 4, 1)
end

-- Takes over the entries of an XPENDING, oldest first, that are idle for `since` milliseconds. Returns how many ids it
-- appended, the error of a command or nil, and how many ids an entry may have.
local function claim(line, pending, taker, since, text, most, mark, idle)
  local got, per, at = 0, IDS, 1
  while got < most and at <= #pending do
    local places, had = {}, {}
    for n = at, math.min(#pending, at + math.ceil((most - got) / per) - 1) do
      local place = pending[n][1]
      places[#places + 1] = place
      had[place] = math.floor(pending[n][4] / UNIT)
    end
    at = at + #places
    local claimed = redis.pcall('XCLAIM', line, 'nodes', taker, since, unpack(places))
    if claimed.err then
      return got, claimed
    end
    local more, fault = add(line, text, claimed, had, most - got, mark, idle)
    got = got + more
    if fault then
      return got, fault
    end
    per = guess(per, #claimed, more)
  end
  return got, nil, per
end

