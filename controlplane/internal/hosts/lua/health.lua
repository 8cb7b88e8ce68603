-- Stores a host's health.
-- KEYS[1] fb:{ORG}:hosts
-- ARGV    id, fence, health (binary)
-- Returns 1, or 0 when the fence is stale. O(1).
if fence_of(ARGV[1]) ~= ARGV[2] then
  return 0
end
redis.call('HSET', key('health'), ARGV[1], ARGV[3])
return 1
