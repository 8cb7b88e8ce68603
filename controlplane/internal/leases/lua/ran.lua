-- Notes when work was done under a lease, where the one who did it has it still.
-- KEYS[1] fb:lease:NAME (see hold.lua)
-- ARGV    holder, term, then pairs of a field (ran:NAME) and its value
-- Returns how many were noted. O(pairs).
local lease = redis.call('HMGET', KEYS[1], 'holder', 'term')
if lease[1] ~= ARGV[1] or lease[2] ~= ARGV[2] then
  return 0
end
for i = 3, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
return (#ARGV - 2) / 2
