-- Finds due work of one partition in the exact order of dispatch, and claims it if that is asked.
-- KEYS: the partition's; those of the instances found lie under the same hash tag.
-- ARGV: the packed pair of the `Poll` and its ttl in decimal.
-- Answers {now, instances to advance, offers, instances that cannot be read}; an offer is {id,
-- node, row, view, results, input, available at}.

local argument = cmsgpack.unpack(ARGV[1])
local query, ttl = argument[1], argument[2]
local now = clock()
local excluded = set_of(query.exclude)
local accepted = set_of(query.tags)
local any_tags = #query.tags == 0
local definitions = query.definitions and set_of(query.definitions)
local unreadable = {}

local function asked_for(it)
  if it.flaw then
    unreadable[it.id] = it.flaw
    return false
  end

  return it.row and (not definitions or definitions[it.row.definition_hash])
end

local function due_advances()
  local found, seen = {}, {}

  if query.advances == 0 then
    return found
  end

  for member, at in walk(LANE(0), now, query.advances) do
    local id, node_id = ids_of(member)

    if not excluded[id] and not seen[id] and asked_for(known(id))
      and entry_at(known(id), node_id, 0, at)
    then
      seen[id] = true
      found[#found + 1] = id
    end

    if #found == query.advances then
      break
    end
  end

  return found
end

-- Whether what is first in lane `one` goes before what is first in lane `other`: the order of
-- (priority * aging + available_at, available_at), compared by differences, which are exact.
local function goes_before(one, one_at, other, other_at)
  if not query.aging then
    return one < other
  end

  local ahead, younger = (one - other) * query.aging, other_at - one_at

  if ahead ~= younger then
    return ahead < younger
  end

  return one_at < other_at
end

-- What is due in all lanes, merged.
local function due_tasks()
  local lanes, members, ats = {}, {}, {}

  for lane = 1, 5 do
    lanes[lane] = walk(LANE(lane), now, query.limit)
    members[lane], ats[lane] = lanes[lane]()
  end

  return function()
    local first

    for lane = 1, 5 do
      if members[lane] and (not first or goes_before(lane, ats[lane], first, ats[first])) then
        first = lane
      end
    end

    if first then
      local member, at = members[first], ats[first]
      members[first], ats[first] = lanes[first]()
      return member, at, first
    end
  end
end

local function fits(entry)
  if any_tags then
    return true
  end

  for _, tag in ipairs(entry.tags or {}) do
    if not accepted[tag] then
      return false
    end
  end

  return true
end

local function choose()
  local chosen, yielding = {}, {}

  if query.limit == 0 then
    return chosen
  end

  for member, at, lane in due_tasks() do
    local id, node_id = ids_of(member)
    local it = not excluded[id] and known(id)
    local entry = it and asked_for(it) and entry_at(it, node_id, lane, at)

    if entry and fits(entry) then
      local choice = { it = it, entry = entry, at = at, lane = lane }

      if entry.avoid ~= query.worker_id or now - at >= query.bias then
        chosen[#chosen + 1] = choice
      elseif #yielding < query.limit then
        choice.yields = true
        yielding[#yielding + 1] = choice
      end

      if #chosen == query.limit then
        return chosen
      end
    end
  end

  for _, choice in ipairs(yielding) do
    if #chosen < query.limit then
      chosen[#chosen + 1] = choice
    end
  end

  return chosen
end

local function inputs_are_sound(chosen)
  for _, choice in ipairs(chosen) do
    local it = choice.it

    if (query.results or choice.entry.input_from)
      and redis.call('HLEN', it.results_key) ~= it.row.results
    then
      it.flaw = RESULTS_FLAW
    elseif it.queue.events > 0
      and redis.call('ZCARD', it.events_key) ~= it.queue.events
    then
      it.flaw = QUEUE_FLAW
    end

    if it.flaw then
      unreadable[it.id] = it.flaw
      return false
    end
  end

  return true
end

local function claim(chosen)
  local touched, before = {}, {}

  for number, choice in ipairs(chosen) do
    local it = choice.it

    if not before[it.id] then
      before[it.id] = places_of(it)
      touched[#touched + 1] = it
    end

    local nonce = query.nonce .. '.' .. string.format('%d', number - 1 + argument[3])
    local at = math.max(now, it.row.updated_at)
    grant(it.row, choice.entry.node_id, query, nonce, query.worker_tags, ttl, at)
  end

  for _, it in ipairs(touched) do
    store_row(it, before[it.id])
  end
end

local function offer(choice)
  local it = choice.it
  local stored = redis.call('HMGET', it.row_key, 'b', 'i')
  return {
    it.id,
    choice.entry.node_id,
    it.packed,
    { stored[1], stored[2], heads(it, false) },
    query.results and redis.call('HGETALL', it.results_key) or false,
    entry_input(it, choice.entry) or false,
    choice.at,
    choice.lane,
    choice.yields and 1 or 0,
  }
end

local function listed_unreadable()
  local list = {}

  for id, flaw in pairs(unreadable) do
    list[#list + 1] = id
    list[#list + 1] = flaw
  end

  return list
end

local advances = due_advances()

if #advances > 0 then
  return { now, advances, {}, listed_unreadable() }
end

-- What turns out to be damaged leaves its place to others.
local chosen = choose()

while not inputs_are_sound(chosen) do
  chosen = choose()
end

if query.claim then
  claim(chosen)
end

local offers = {}

for number, choice in ipairs(chosen) do
  offers[number] = offer(choice)
end

return { now, {}, offers, listed_unreadable() }
