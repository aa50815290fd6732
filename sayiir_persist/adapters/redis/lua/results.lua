-- Results lie in a hash of their own; the row counts them, so that a loss is seen.

-- The input of an entry's task; false: there is none.
local function entry_input(it, entry)
  if not entry.input_from then
    return false
  end

  if entry.input_from == INSTANCE_INPUT then
    return redis.call('HGET', it.row_key, 'i')
  end

  return redis.call('HGET', it.results_key, entry.input_from)
end
