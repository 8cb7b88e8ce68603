-- Stores the result of a command. The first one stands.
-- KEYS[1] fb:{ORG}:hosts
-- ARGV    id, fence, command id, result (binary)
-- Returns 1, 0 when it was there, -1 when the fence is stale, -2 when there is no such command. O(1).
local id = ARGV[1]
if fence_of(id) ~= ARGV[2] then
  return -1
end
if redis.call('HEXISTS', key('cmds:' .. id), ARGV[3]) == 0 then
  return -2
end
local stored = redis.call('HSETNX', key('results:' .. id), ARGV[3], ARGV[4])
if stored == 1 then
  ring('result ' .. id)
end
return stored
