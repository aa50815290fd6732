-- Records how a namespace is laid out, where nothing is recorded yet and `migrate` allows it.
-- KEYS: the record.
-- ARGV: the packed {version, partitions, migrate}.
-- Answers what is recorded: {version, partitions}, or nil where nothing is.

local wish = cmsgpack.unpack(ARGV[1])
local recorded = redis.call('HMGET', KEYS[1], 'version', 'partitions')

if not recorded[1] and wish[3] then
  redis.call('HSET', KEYS[1], 'version', wish[1], 'partitions', wish[2])
  return { wish[1], wish[2] }
end

return recorded[1] and { tonumber(recorded[1]), tonumber(recorded[2]) }
