-- What else may refuse a unit that does more than to save and to claim.

local function repeated(it, name, event_id)
  return event_id and it.queue.ids > 0
    and redis.call('ZSCORE', it.ids_key, name .. '\0' .. event_id)
end

local function same_signals(marks, signals)
  local count = 0

  for _ in pairs(signals) do
    count = count + 1
  end

  for _, mark in ipairs(marks) do
    local stored = signals[mark.kind]

    if not stored
      or stored.requested_at ~= mark.requested_at
      or stored.reason ~= mark.reason
      or stored.requested_by ~= mark.requested_by
    then
      return false
    end
  end

  return count == #marks
end

local function holds_besides(guard, it, now)
  if guard.head then
    local _, number = head(it, guard.head[1])

    if number ~= guard.head[2] then
      return false
    end
  end

  local row = it.row
  return not row
    or (not guard.idle or not has_live_claims(row, now))
    and (not guard.signals or same_signals(guard.signals, row.signals or {}))
end

-- An event that is drained at once needs no room.
local function has_room(it, name, event_id, limit, now)
  local row = it.row

  if it.queue.events < limit or repeated(it, name, event_id) then
    return true
  end

  if not row or row.status ~= IN_PROGRESS or row.signals or head(it, name) then
    return false
  end

  for _, entry in ipairs(row.entries) do
    if entry.event == name and (not entry['until'] or now < entry['until']) then
      return true
    end
  end

  return false
end

local function has_elapsed(row, now)
  local horizon = row.status == PAUSED and row.status_since or now

  for _, entry in ipairs(row.entries) do
    if entry.elapses and entry.elapses <= horizon and not entry.met then
      return true
    end
  end

  return false
end
