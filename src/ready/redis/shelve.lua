-- Puts hints of one line back, for anybody to take.
--
-- KEYS: the line. ARGV: the taker; as how long an entry counts on the shelf; then for each entry its place; "o" if the
-- taker has all of it that is not on the shelf, "a" if it has no other id, or "s" if it has only some; which of its ids
-- come back, a bit each; and these ids, 16 bytes each.
--
-- Answers nothing; the error of the first command that failed.
for n = 3, #ARGV, 4 do
  local place, whose, back, ids = ARGV[n], ARGV[n + 1], tonumber(ARGV[n + 2]), ARGV[n + 3]
  local pending = redis.pcall('XPENDING', KEYS[1], 'nodes', place, place, 1)
  if pending.err then
    return pending
  end
  local held, out = pending[1], nil
  if held and whose == 'a' then
    out = 0
  elseif held and held[2] == 'put-back' then
    out = math.floor(held[4] / UNIT)
    for id = 0, IDS - 1 do
      local bit = 2 ^ id
      if math.floor(back / bit) % 2 == 1 and math.floor(out / bit) % 2 == 1 then
        out = out - bit
      end
    end
  elseif held and whose == 'o' and held[2] == ARGV[1] then
    out = 2 ^ IDS - 1 - back
  end
  local fault
  if out then
    fault = shelve(KEYS[1], place, out, ARGV[2])
  elseif whose == 's' then
    -- Somebody else has the entry, or it is gone: these ids begin anew, at the end.
    local added = redis.pcall('XADD', KEYS[1], 'NOMKSTREAM', '*', 'j', ids)
    fault = type(added) == 'table' and added.err and added
  end
  if fault then
    return fault
  end
end
return false
