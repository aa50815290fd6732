-- Walks through a sorted set from its lowest score up, in slices that grow: a walk that ends early
-- has read little, one that goes far makes few calls.
local FIRST_SLICE = 16

local function walk(key, highest, wanted)
  local slice, offset, at, found, ended = wanted + FIRST_SLICE, 0, 1, {}, false

  -- The next member and its score; nil at the end.
  return function()
    if at > #found then
      if ended then
        return nil
      end

      found = redis.call(
        'ZRANGEBYSCORE', key, '-inf', highest, 'WITHSCORES', 'LIMIT', offset, slice
      )
      ended = #found < 2 * slice
      offset, slice, at = offset + slice, 2 * slice, 1

      if #found == 0 then
        return nil
      end
    end

    at = at + 2
    return found[at - 2], tonumber(found[at - 1])
  end
end

-- Instances of this script, each read once.
local read = {}

local function known(id)
  if not read[id] then
    read[id] = find(id)
  end

  return read[id]
end

-- The entry that an index names, if the instance agrees: what was deleted or changed by hand is
-- passed over.
local function entry_at(it, node_id, lane, at)
  if it.flaw or not it.row then
    return nil
  end

  for _, entry in ipairs(it.row.entries) do
    if entry.node_id == node_id then
      local in_lane, available_at = place_of(it.row, entry)
      return in_lane == lane and available_at == at and entry
    end
  end
end

-- The instance and the node that a member of a lane names.
local function ids_of(member)
  local cut = string.find(member, '\0', 1, true)
  return string.sub(member, 1, cut - 1), string.sub(member, cut + 1)
end

local function set_of(list)
  local set = {}

  for _, each in ipairs(list) do
    set[each] = true
  end

  return set
end
