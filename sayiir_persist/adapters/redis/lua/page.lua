-- Lists instances of one partition by the bytes of their ids, or the stalled ones, longest first.
-- KEYS: the partition's; those of the instances found lie under the same hash tag.
-- ARGV: the packed `Page`.
-- Answers {now, id, row, id, row, ...}.

local query = cmsgpack.unpack(ARGV[1])
local now = clock()
local answer = { now }

local function add(it)
  answer[#answer + 1] = it.id
  answer[#answer + 1] = it.packed
end

local function stalled()
  for id, at in walk(IDLE, now - query.idle_for, query.limit) do
    local it = known(id)

    if it.row and not it.flaw and it.row.idle and it.row.updated_at == at
      and not has_live_claims(it.row, math.max(now, it.row.updated_at))
    then
      add(it)
    end

    if #answer > 2 * query.limit then
      return
    end
  end
end

-- The ids of one listing above `after`, in slices.
local function listing(start)
  local from = query.after and '(' .. start .. query.after or '[' .. start
  local found, at, slice = {}, 1, query.limit

  return function()
    if at > #found then
      if at > 1 and #found < slice then
        return nil
      end

      found = redis.call(
        'ZRANGEBYLEX', LISTING, from, '(' .. string.sub(start, 1, -2) .. '\1', 'LIMIT', 0, slice
      )
      at = 1

      if #found == 0 then
        return nil
      end

      from = '(' .. found[#found]
    end

    at = at + 1
    return string.sub(found[at - 1], #start + 1)
  end
end

-- By bytes: `<` compares by the locale of the server.
local function goes_before(one, other)
  for at = 1, math.min(#one, #other) do
    local a, b = string.byte(one, at), string.byte(other, at)

    if a ~= b then
      return a < b
    end
  end

  return #one < #other
end

local function listed()
  local lists, ids = {}, {}

  for number, status in ipairs(query.status and { query.status } or STATUSES) do
    local start = 's' .. status .. '\0'

    if query.definition_hash then
      start = 'd' .. query.definition_hash .. '\0' .. status .. '\0'
    end

    lists[number] = { next = listing(start), status = status }
    ids[number] = lists[number].next() or false
  end

  while #answer <= 2 * query.limit do
    local first

    for number = 1, #lists do
      if ids[number] and (not first or goes_before(ids[number], ids[first])) then
        first = number
      end
    end

    if not first then
      return
    end

    local it = find(ids[first])

    if it.row and not it.flaw and it.row.status == lists[first].status
      and (not query.definition_hash or it.row.definition_hash == query.definition_hash)
    then
      add(it)
    end

    ids[first] = lists[first].next() or false
  end
end

if query.limit > 0 then
  if query.idle_for then
    stalled()
  else
    listed()
  end
end

return answer
