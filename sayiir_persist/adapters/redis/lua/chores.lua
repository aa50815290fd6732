-- Lists what a sweep has to do in one partition, oldest first, and purges long-expired claims.
-- KEYS: the partition's; those of the instances found lie under the same hash tag.
-- ARGV: the packed `Chores`.
-- Answers {ids and since when, purged, whether there is more to purge}.

local query = cmsgpack.unpack(ARGV[1])
local now = clock()
local excluded = set_of(query.exclude)
local due, seen = {}, {}

local function note(id, at)
  seen[id] = true
  due[#due + 1] = id
  due[#due + 1] = at
end

local function is_free(id)
  local it = known(id)
  return it.row and not it.flaw
    and not has_live_claims(it.row, math.max(now, it.row.updated_at))
end

local function due_instances()
  local signalled = walk(SIGNALLED, '+inf', query.limit)
  local advances = walk(LANE(0), now, query.limit)
  local id, id_at = signalled()
  local member, member_at = advances()

  while (id or member) and #due <= 2 * query.limit do
    if id and (not member or id_at <= member_at) then
      if not seen[id] and not excluded[id] and is_free(id) and known(id).row.signals then
        note(id, id_at)
      end

      id, id_at = signalled()
    else
      local found, node_id = ids_of(member)

      if not seen[found] and not excluded[found] and is_free(found)
        and entry_at(known(found), node_id, 0, member_at)
      then
        note(found, member_at)
      end

      member, member_at = advances()
    end
  end
end

local function drop_ended(it, cutoff, most)
  local dropped, left = {}, 0

  for task_id, claim in pairs(it.row.claims or {}) do
    local ends = ends_at(claim)

    if ends and ends <= cutoff then
      if #dropped < most then
        dropped[#dropped + 1] = task_id
      else
        left = left + 1
      end
    end
  end

  for _, task_id in ipairs(dropped) do
    drop_claim(it.row, task_id)
  end

  return #dropped, left
end

local function purge()
  local cutoff = now - query.purge_after
  local old = redis.call('ZRANGEBYSCORE', PURGE, '-inf', cutoff, 'LIMIT', 0, query.limit + 1)
  local purged, left = 0, 0

  for number, id in ipairs(old) do
    if number > query.limit then
      break
    end

    local it = known(id)
    redis.call('ZREM', PURGE, id)

    if it.row and not it.flaw then
      local before = places_of(it)
      local dropped, kept = drop_ended(it, cutoff, query.limit - purged)
      purged, left = purged + dropped, left + kept
      it.row.purge_at = nil
      store_row(it, before)
    end
  end

  return purged, left > 0 or #old > query.limit
end

due_instances()
local purged, more = purge()
return { due, purged, more and 1 or 0 }
