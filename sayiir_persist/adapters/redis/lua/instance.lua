-- One instance as it is stored: the packed row `s` and the packed state of its queue `q`, which may
-- be there without a row. Nothing is nil in a row but by its absence, so that packing keeps arrays.

-- A flaw says that something of it was deleted or overwritten by hand.
local function find(id, row_key, results_key, events_key, ids_key)
  local it = {
    id = id,
    row_key = row_key or prefix .. 'i:' .. id,
    results_key = results_key or prefix .. 'r:' .. id,
    events_key = events_key or prefix .. 'e:' .. id,
    ids_key = ids_key or prefix .. 'd:' .. id,
  }
  local stored = redis.call('HMGET', it.row_key, 's', 'q')
  local read, value

  if stored[1] then
    it.packed = stored[1]
    read, value = pcall(cmsgpack.unpack, stored[1])

    if read and type(value) == 'table' and value.version and value.entries then
      it.row = value
    else
      it.flaw = ROW_FLAW
    end
  end

  if not stored[2] then
    it.queue = { last = 0, events = 0, ids = 0 }
    return it
  end

  read, value = pcall(cmsgpack.unpack, stored[2])

  if read and type(value) == 'table' and value.events then
    it.queue = value
  else
    it.flaw = QUEUE_FLAW
  end

  return it
end

local function ends_at(claim)
  return claim.ttl and claim.since + tonumber(claim.ttl)
end

-- The claim on a task, and whether it is live; at exactly its end it is not.
local function claim_on(row, task_id, now)
  local claim = row.claims and row.claims[task_id]

  if claim then
    return claim, not claim.ttl or now < ends_at(claim)
  end
end

local function drop_claim(row, task_id)
  if row.claims then
    row.claims[task_id] = nil

    if not next(row.claims) then
      row.claims = nil
    end
  end
end

-- A claim with a fence above every earlier one of the id: the floor outlives the row, and the
-- clock outlives a floor that was lost.
local function grant(row, task_id, wish, nonce, tags, ttl, now)
  row.fence = math.max(row.fence + 1, now)
  row.claims = row.claims or {}
  row.claims[task_id] = {
    task_id = task_id,
    worker_id = wish.worker_id,
    fence = row.fence,
    claimed_at = now,
    since = now,
    ttl = ttl,
    nonce = nonce,
    worker_tags = tags,
  }
end

-- Where a poll finds an entry, and from when on; nil: not as things are.
local function place_of(row, entry)
  if row.status ~= IN_PROGRESS or row.signals then
    return nil
  end

  if entry.met then
    return 0, entry.met
  end

  if entry.kind == ADVANCE then
    return entry.due and 0, entry.due
  end

  if entry.done or not entry.due then
    return nil
  end

  local lane, claim = entry.priority or USUAL_PRIORITY, row.claims and row.claims[entry.node_id]

  if not claim then
    return lane, entry.due
  end

  if claim.ttl then
    return lane, math.max(entry.due, ends_at(claim))
  end
end
