-- Reads one instance in one consistent step.
-- KEYS: the partition's; row, results, events, event ids of the instance.
-- ARGV: the packed `Read`; its results are true, false, or the ids that are wanted.
-- Answers {now, row, body, input, heads, results}, or nil where no row is.

local wish = cmsgpack.unpack(ARGV[1])
local it = find(wish.instance_id, OWN_ROW, OWN_RESULTS, OWN_EVENTS, OWN_IDS)

if not it.row and not it.flaw then
  return false
end

if it.flaw then
  return redis.error_reply(it.flaw)
end

if it.queue.events > 0 and redis.call('ZCARD', it.events_key) ~= it.queue.events then
  return redis.error_reply(QUEUE_FLAW)
end

local stored = wish.body and redis.call('HMGET', it.row_key, 'b', 'i') or {}
local results = false

if wish.results == true then
  results = redis.call('HGETALL', it.results_key)
elseif wish.results then
  results = {}

  for _, node_id in ipairs(wish.results) do
    results[#results + 1] = node_id
    results[#results + 1] = redis.call('HGET', it.results_key, node_id)
  end
end

if results and redis.call('HLEN', it.results_key) ~= it.row.results then
  return redis.error_reply(RESULTS_FLAW)
end

return {
  clock(),
  it.packed,
  stored[1] or false,
  stored[2] or false,
  heads(it, wish.payloads),
  results,
}
