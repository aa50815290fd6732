-- Moves the end of a live claim; one that has ended is never revived.
-- KEYS: the partition's; row, results, events, event ids of the instance.
-- ARGV: the packed pair of the `Extend` and its ttl in decimal.
-- Answers {now, row, whether it was extended}.

local argument = cmsgpack.unpack(ARGV[1])
local wish, ttl = argument[1], argument[2]
local it = find(wish.instance_id, OWN_ROW, OWN_RESULTS, OWN_EVENTS, OWN_IDS)
local row = it.row

if it.flaw then
  return redis.error_reply(it.flaw)
end

local now = clock()

if not row then
  return { now, false, 0 }
end

now = math.max(now, row.updated_at)
local held, live = claim_on(row, wish.key.task_id, now)

if not live or held.fence ~= wish.key.fence then
  return { now, it.packed, 0 }
end

if held.ttl then
  local before = places_of(it)
  held.since, held.ttl = now, ttl
  store_row(it, before)
end

return { now, it.packed, 1 }
