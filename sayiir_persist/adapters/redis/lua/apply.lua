-- Carries out one `Unit` on one instance, or nothing of it. Whatever can refuse it is looked at
-- before the first write: a server that is out of memory refuses the first one, and no other.
-- What stands between `--{` and `--}` is left out of `commit`, the script for units that only save
-- a version, release and claim.
-- KEYS: the partition's; row, results, events, event ids of the instance.
-- ARGV: the packed pair of the unit and the ttl of `claim_next` in decimal.
-- Answers {why it is refused, now, row, number of the entry claimed, its input, claim revoked,
-- payload popped, body, input and heads of a view}; `commit` ends after the first input.

local argument = cmsgpack.unpack(ARGV[1])
local unit, ttl, content = argument[1], argument[2], argument[1].content
local it = find(unit.instance_id, OWN_ROW, OWN_RESULTS, OWN_EVENTS, OWN_IDS)
local row, now = it.row, clock()

if row then
  now = math.max(now, row.updated_at)
end

-- What the unit will read must not turn out to be damaged once it has begun to write.
local flaw = it.flaw

if it.queue.events > 0 and redis.call('ZCARD', it.events_key) ~= it.queue.events then
  flaw = QUEUE_FLAW
elseif unit.claim_next and row and redis.call('HLEN', it.results_key) ~= row.results then
  flaw = RESULTS_FLAW
--{
elseif unit.record and row and redis.call('HLEN', it.results_key) ~= row.results then
  flaw = RESULTS_FLAW
elseif unit.push and redis.call('ZCARD', it.events_key) ~= it.queue.events then
  flaw = QUEUE_FLAW
elseif unit.push and unit.push[3] and redis.call('ZCARD', it.ids_key) ~= it.queue.ids then
  flaw = QUEUE_FLAW
--}
end

if flaw then
  return redis.error_reply(flaw)
end

local why = not holds(unit.guard, row, now) and GUARD

--{
if not why and not holds_besides(unit.guard, it, now) then
  why = GUARD
end

if not why and unit.push and not has_room(it, unit.push[1], unit.push[3], unit.push[4], now) then
  why = QUEUE_FULL
end

if not why and unit.record and row and has_elapsed(row, now) then
  why = ELAPSED
end

local function view()
  if not it.row or not unit.view then
    return false
  end

  local stored = redis.call('HMGET', it.row_key, 'b', 'i')
  return { stored[1], stored[2], heads(it, false) }
end

--}
if not why and unit.release and not (row and has_claim(row, unit.release, now)) then
  why = GUARD
end

if why then
  local reply = { why, now, row and it.packed or false, 0, false }
--{
  reply[6], reply[7], reply[8] = false, false, view()
--}
  return reply
end

local before = places_of(it)
local gained, dropped = content and content.gained, content and content.dropped
local replaces, claimed, input, fresh = unit.replace, 0, false, nil
--{
local created, queue_moves, revoked, popped = false, false, false, false

if it.row and (unit.delete or unit.restart) then
  local row, floor = it.row, tonumber(redis.call('GET', FLOOR) or 0)

  if row.fence > floor then
    redis.call('SET', FLOOR, string.format('%.0f', row.fence))
  end

  if row.purge_at then
    redis.call('ZREM', PURGE, it.id)
  end

  redis.call('DEL', it.row_key, it.results_key, it.events_key, it.ids_key)
  it.row, it.queue = nil, { last = it.queue.last, events = 0, ids = 0 }
end

if content and not it.row and unit.create then
  created = true
  it.row = {
    incarnation = unit.create,
    version = 0,
    created_at = now,
    status_since = now,
    entries = {},
    results = 0,
    fence = tonumber(redis.call('GET', FLOOR) or 0),
  }
end

replaces, row = created or unit.replace, it.row
--}

if content and row then
  fresh = write(row, content, unit.guard.claim and unit.guard.claim.task_id, now)
end

--{
if unit.record and row then
  local node_id, output, ready = unit.record[1], unit.record[2], nil

  for _, entry in ipairs(row.entries) do
    if entry.early and entry.node_id == node_id then
      ready = entry
      break
    end
  end

  if (ready and not ready.done) or redis.call('HGET', it.results_key, node_id) ~= output then
    gained = { [node_id] = output }
    row.last_completed = node_id
    row.version = row.version + 1
    row.updated_at = now

    if ready then
      ready.done = true
      row.idle = row.status == IN_PROGRESS or nil

      for _, entry in ipairs(row.entries) do
        row.idle = entry.done and row.idle
      end
    end
  end
end

if row and (unit.signal or unit.clear) then
  local mark = unit.signal
  row.signals = row.signals or {}

  if mark then
    mark.requested_at = now
    row.signals[mark.kind] = mark
  end

  for _, kind in ipairs(unit.clear or {}) do
    row.signals[kind] = nil
  end

  if not next(row.signals) then
    row.signals = nil
  end
end

if row and unit.revoke then
  local claim, live = claim_on(row, unit.revoke, now)

  if live then
    drop_claim(row, unit.revoke)
    revoked = cmsgpack.pack(claim)
  end
end

if unit.push and not repeated(it, unit.push[1], unit.push[3]) then
  local name, payload, event_id = unit.push[1], unit.push[2], unit.push[3]
  local queue = it.queue
  queue_moves = true
  -- Numbers never lag the clock, so none comes again even where the counter was lost.
  queue.last = math.max(queue.last + 1, now)
  queue.events = queue.events + 1
  local numbers = string.format('%016.0f%016.0f', queue.last, now)
  redis.call('ZADD', it.events_key, 0, name .. '\0' .. numbers .. payload)

  if event_id then
    redis.call('ZADD', it.ids_key, now, name .. '\0' .. event_id)
    queue.ids = queue.ids + 1
  end

  while event_id and queue.ids > REMEMBERED_EVENT_IDS do
    local oldest = redis.call('ZRANGE', it.ids_key, 0, 0, 'WITHSCORES')

    if tonumber(oldest[2]) > now - DAY and queue.ids <= 10 * REMEMBERED_EVENT_IDS then
      break
    end

    redis.call('ZREM', it.ids_key, oldest[1])
    queue.ids = queue.ids - 1
  end
end

if unit.pop then
  local member = head(it, unit.pop)

  if member then
    redis.call('ZREM', it.events_key, member)
    it.queue.events = it.queue.events - 1
    popped, queue_moves = string.sub(member, #unit.pop + 34), true
  end
end

--}
if row and unit.release then
  drop_claim(row, unit.release.task_id)
end

local meets = false

for _, entry in ipairs(row and row.entries or {}) do
  if entry.event then
    local _, _, arrived_at = head(it, entry.event)
    local in_time = arrived_at and (not entry['until'] or arrived_at < entry['until'])
    entry.met = in_time and arrived_at or nil
    meets = meets or in_time
  end
end

-- The first entry that this write made ready and due, whose tags the worker accepts.
if row and content and unit.claim_next and not meets then
  local wish = unit.claim_next

  for number, entry in ipairs(row.entries) do
    local lane, at = place_of(row, entry)
    local accepted = content.entries[number].fresh and lane and lane > 0 and at <= now

    for _, tag in ipairs(accepted and #wish.tags > 0 and entry.tags or {}) do
      accepted = accepted and contains(wish.tags, tag)
    end

    if accepted then
      grant(row, entry.node_id, wish, wish.nonce, wish.tags, ttl, now)
      local source = entry.input_from
      claimed = number

      if source == INSTANCE_INPUT and replaces then
        input = content.input or false
      elseif source and gained and gained[source] then
        input = gained[source]
      elseif source == INSTANCE_INPUT then
        input = redis.call('HGET', it.row_key, 'i')
      elseif source and not (replaces or (dropped and contains(dropped, source))) then
        input = redis.call('HGET', it.results_key, source)
      end

      break
    end
  end
end

local after = places_of(it)
reindex(it, before, after)

if row and replaces then
  redis.call('DEL', it.results_key)
  row.results = 0
end

for _, node_id in ipairs(row and dropped or {}) do
  row.results = row.results - redis.call('HDEL', it.results_key, node_id)
end

for node_id, output in pairs(row and gained or {}) do
  row.results = row.results + redis.call('HSET', it.results_key, node_id, output)
end

if row then
  note_expiries(it)
  it.packed = cmsgpack.pack(row)

  if content then
    redis.call('HSET', it.row_key, 's', it.packed, 'b', content.body)
  else
    redis.call('HSET', it.row_key, 's', it.packed)
  end

  if content and replaces and content.input then
    redis.call('HSET', it.row_key, 'i', content.input)
  elseif content and replaces then
    redis.call('HDEL', it.row_key, 'i')
  end

  -- Tasks that this write made available; many at once are one hint that anything may be.
  local hints = {}

  for member, at in pairs(after.ats) do
    local node_id = string.sub(member, #it.id + 2)
    local offered = before.ats[member] and before.ats[member] <= now and before.lanes[member] > 0

    if at <= now and after.lanes[member] > 0 and ((fresh and fresh[node_id]) or not offered) then
      hints[#hints + 1] = node_id
    end
  end

  if #hints > MOST_HINTS then
    redis.call(PUBLISH, prefix .. 'hints', '')
    hints = {}
  end

  for _, node_id in ipairs(hints) do
    for _, entry in ipairs(row.entries) do
      if entry.node_id == node_id then
        local hint = { it.id, node_id, row.definition_hash, entry.tags or {} }
        redis.call(PUBLISH, prefix .. 'hints', cmsgpack.pack(hint))
      end
    end
  end
end

--{
if queue_moves and (row or it.queue.events > 0 or it.queue.ids > 0) then
  redis.call('HSET', it.row_key, 'q', cmsgpack.pack(it.queue))
elseif queue_moves then
  redis.call('DEL', it.row_key)
end

--}
local reply = { '', now, row and it.packed or false, claimed, input }
--{
reply[6], reply[7], reply[8] = revoked, popped, view()
--}
return reply
