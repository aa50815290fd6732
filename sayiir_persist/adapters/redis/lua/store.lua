-- Stores a row whose claims have changed.
local function store_row(it, before)
  reindex(it, before, places_of(it))
  note_expiries(it)
  it.packed = cmsgpack.pack(it.row)
  redis.call('HSET', it.row_key, 's', it.packed)
end
