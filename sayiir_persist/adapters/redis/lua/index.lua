-- Everything by which an instance is found. A write changes the difference and nothing else.

-- Where an instance stands: its entries by member, which sorts like (instance id, node id) by
-- bytes, and its other places.
local function places_of(it)
  local lanes, ats, row = {}, {}, it.row

  if not row then
    return { lanes = lanes, ats = ats }
  end

  for _, entry in ipairs(row.entries) do
    local lane, at = place_of(row, entry)

    if lane then
      local member = it.id .. '\0' .. entry.node_id
      lanes[member], ats[member] = lane, at
    end
  end

  local signalled

  for _, mark in pairs(row.signals or {}) do
    signalled = math.min(signalled or mark.requested_at, mark.requested_at)
  end

  return {
    lanes = lanes,
    ats = ats,
    idle = row.idle and row.updated_at or nil,
    signalled = signalled,
    status = row.status,
    definition = row.definition_hash,
  }
end

local function move(key, member, after)
  if after then
    redis.call('ZADD', key, after, member)
  else
    redis.call('ZREM', key, member)
  end
end

local function list(command, id, status, definition)
  local by_status = 's' .. status .. '\0' .. id
  local by_definition = 'd' .. definition .. '\0' .. status .. '\0' .. id

  if command == 'ZADD' then
    redis.call('ZADD', LISTING, 0, by_status, 0, by_definition)
  else
    redis.call('ZREM', LISTING, by_status, by_definition)
  end
end

-- What is added comes first, so that a server that is out of memory refuses the whole write.
local function reindex(it, before, after)
  for member, lane in pairs(after.lanes) do
    if before.lanes[member] ~= lane or before.ats[member] ~= after.ats[member] then
      redis.call('ZADD', LANE(lane), after.ats[member], member)
    end
  end

  for member, lane in pairs(before.lanes) do
    if after.lanes[member] ~= lane then
      redis.call('ZREM', LANE(lane), member)
    end
  end

  if before.idle ~= after.idle then
    move(IDLE, it.id, after.idle)
  end

  if before.signalled ~= after.signalled then
    move(SIGNALLED, it.id, after.signalled)
  end

  if before.status ~= after.status or before.definition ~= after.definition then
    if before.status then
      list('ZREM', it.id, before.status, before.definition)
    end

    if after.status then
      list('ZADD', it.id, after.status, after.definition)
    end
  end
end

-- When a sweep looks at its claims next. Most claims are gone long before, so a bound that still
-- holds stays, and the index rests.
local function note_expiries(it)
  local row, first = it.row, nil

  for _, claim in pairs(row.claims or {}) do
    local ends = ends_at(claim)

    if ends then
      first = math.min(first or ends, ends)
    end
  end

  if first and (not row.purge_at or first < row.purge_at) then
    row.purge_at = first
    redis.call('ZADD', PURGE, first, it.id)
  elseif row.purge_at and not first and row.status ~= IN_PROGRESS and row.status ~= PAUSED then
    row.purge_at = nil
    redis.call('ZREM', PURGE, it.id)
  end
end
