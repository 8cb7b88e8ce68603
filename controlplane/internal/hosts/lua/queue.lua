-- Queues a command for a host, and drops the oldest finished ones beyond a limit.
-- KEYS[1] fb:{ORG}:hosts
-- ARGV    id, command id, command (binary), most to keep
-- Returns 1, 0 when there is no such host, -1 when too many wait. O(commands kept) when over the limit.
local id = ARGV[1]
if redis.call('HEXISTS', KEYS[1], id) == 0 then
  return 0
end
local commands, results, limit = key('cmds:' .. id), key('results:' .. id), tonumber(ARGV[4])
if redis.call('HLEN', commands) >= limit then
  local finished = redis.call('HKEYS', results)
  if #finished == 0 then
    return -1
  end
  table.sort(finished)
  for i = 1, math.max(1, math.floor(#finished / 2)) do
    redis.call('HDEL', commands, finished[i])
    redis.call('HDEL', results, finished[i])
  end
end
redis.call('HSET', commands, ARGV[2], ARGV[3])
ring('command ' .. id)
return 1
