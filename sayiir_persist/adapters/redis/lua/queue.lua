-- The events of one instance id, in one sorted set that is ordered by bytes: name, U+0000, number,
-- arrival, payload, both numbers in 16 digits.

-- The member of the oldest event of a name, its number and its arrival.
local function head(it, name)
  if it.queue.events == 0 then
    return nil
  end

  local member = redis.call(
    'ZRANGEBYLEX', it.events_key, '[' .. name .. '\0', '(' .. name .. '\1', 'LIMIT', 0, 1
  )[1]

  if member then
    local at = #name + 2
    return member,
      tonumber(string.sub(member, at, at + 15)),
      tonumber(string.sub(member, at + 16, at + 31))
  end
end
