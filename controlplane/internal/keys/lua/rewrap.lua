-- Puts the fleet's secret, wrapped under another key, in the place of what was read: not over what came since.
-- KEYS[1] fb:secret
-- ARGV    what was read, what is to stand
-- Returns 1, or 0 where something else stands. O(1).
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2])
return 1
