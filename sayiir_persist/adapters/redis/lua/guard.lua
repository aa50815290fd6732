-- What may refuse a unit: the guard, a plain conjunction, and what the unit itself asks for.

local function contains(list, value)
  for _, each in ipairs(list) do
    if each == value then
      return true
    end
  end

  return false
end

local function has_claim(row, key, now)
  local claim, live = claim_on(row, key.task_id, now)
  return claim and claim.fence == key.fence, live
end

local function holds(guard, row, now)
  if not row then
    return (guard.presence or REQUIRED) ~= REQUIRED
  end

  if guard.claim then
    local same, live = has_claim(row, guard.claim, now)

    if not same or not live then
      return false
    end
  end

  return guard.presence ~= ABSENT
    and (not guard.definition_hash or guard.definition_hash == row.definition_hash)
    and (not guard.statuses or contains(guard.statuses, row.status))
    and (not guard.version or guard.version == row.version)
    and (not guard.incarnation or guard.incarnation == row.incarnation)
end
