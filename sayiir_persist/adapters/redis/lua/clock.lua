-- The store's time in microseconds since 1970: the server's clock, which stands still in a script.
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end
