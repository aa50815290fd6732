-- Claims one task, if it may be claimed.
-- KEYS: the partition's; row, results, events, event ids of the instance.
-- ARGV: the packed pair of the `Take` and its ttl in decimal.
-- Answers {now, row, whether the claim on record is the answer}.

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
local held, live = claim_on(row, wish.task_id, now)

if live then
  local same = held.worker_id == wish.worker_id and held.nonce == wish.nonce
  return { now, it.packed, same and 1 or 0 }
end

local function may_be_claimed()
  if row.status ~= IN_PROGRESS then
    return false
  end

  for _, entry in ipairs(row.entries) do
    if entry.kind == TASK and not entry.met and entry.node_id == wish.task_id
      and (entry.early or (entry.due and entry.due <= now))
    then
      return true
    end
  end

  return false
end

if not may_be_claimed() then
  return { now, it.packed, 0 }
end

local before = places_of(it)
grant(row, wish.task_id, wish, wish.nonce, wish.tags, ttl, now)
store_row(it, before)
return { now, it.packed, 1 }
