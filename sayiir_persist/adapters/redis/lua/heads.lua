-- The oldest queued event of every name, as it is stored, with its payload or without.
-- An advance may lead to a wait for any name, so then all of them count.
local function heads(it, payloads)
  local found, wanted = {}, payloads

  if it.queue.events == 0 then
    return found
  end

  for _, entry in ipairs(it.row.entries) do
    wanted = wanted or entry.event or entry.kind == ADVANCE
  end

  local from = wanted and '-'

  while from do
    local member = redis.call('ZRANGEBYLEX', it.events_key, from, '+', 'LIMIT', 0, 1)[1]
    from = nil

    if member then
      local name = string.match(member, '^[^%z]+')
      found[#found + 1] = payloads and member or string.sub(member, 1, #name + 33)
      from = '[' .. name .. '\1'
    end
  end

  return found
end
