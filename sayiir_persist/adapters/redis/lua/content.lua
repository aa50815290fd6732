-- A new body, and everything that is indexed about it.

-- An instant of the projection, given as an instant and a duration; nil: never.
local function resolve(at, after, now)
  if not after then
    return at and math.min(at, LATEST)
  end

  return math.min(math.max(at or 0, now + after), LATEST)
end

-- Enters the tasks of a content; answers those that are fresh to the index.
local function enter(row, content, fencing, now)
  local known, fresh = {}, nil

  for _, entry in ipairs(row.entries) do
    known[entry.node_id] = entry.kind == TASK and not entry.met
  end

  row.entries = {}

  for number, entry in ipairs(content.entries) do
    local node_id, is_task = entry.node_id, entry.kind == TASK
    local due = resolve(entry.due_at, entry.due_after, now)
    row.entries[number] = {
      node_id = node_id,
      kind = entry.kind,
      due = due and is_task and math.max(due, row.status_since) or due,
      early = entry.early,
      done = entry.done,
      reason = entry.reason,
      priority = entry.priority,
      tags = entry.tags,
      input_from = entry.input_from,
      avoid = entry.avoid,
      event = entry.event,
      ['until'] = resolve(entry.until_at, entry.until_after, now),
      elapses = resolve(entry.elapses_at, entry.elapses_after, now),
    }

    if is_task and (entry.fresh or not known[node_id]) then
      fresh = fresh or {}
      fresh[node_id] = true

      if node_id ~= fencing then
        drop_claim(row, node_id)
      end
    end
  end

  return fresh
end

local function write(row, content, fencing, now)
  if content.status_is_new or row.status ~= content.status then
    row.status_since = now
  end

  row.version = row.version + 1
  row.updated_at, row.body_at = now, now
  row.status, row.definition_hash = content.status, content.definition_hash
  row.priority, row.tags = content.priority, content.tags
  row.last_completed = content.last_completed
  row.idle = content.idle
  local fresh = enter(row, content, fencing, now)

  if row.status ~= IN_PROGRESS and row.status ~= PAUSED then
    row.claims, row.signals = nil, nil
  end

  return fresh
end
