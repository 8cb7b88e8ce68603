-- Stores the health of hosts.
-- KEYS[1] fb:{ORG}:hosts
-- ARGV    for each: id, fence, health (binary)
-- Returns the ids whose fence is stale. O(hosts).
local stale = {}
for i = 1, #ARGV, 3 do
  if fence_of(ARGV[i]) == ARGV[i + 1] then
    redis.call('HSET', key('health'), ARGV[i], ARGV[i + 2])
  else
    stale[#stale + 1] = ARGV[i]
  end
end
return stale
