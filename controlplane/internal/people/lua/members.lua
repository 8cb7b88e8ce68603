-- Changes who belongs to an organisation, if all that the change was decided on still is as it was read. Records are sealed
-- by the control plane, and so decided on and made there (members.go): "ROLE VERSION SINCE EMAIL TAGS ~SEAL".
-- KEYS[1] fb:{ORG}:members, person -> member
-- ARGV    how many other members there may be (-1: any number), person, the new record ("" removes it), then pairs of a
--         person and the record as it was read ("" for none)
-- Returns 1, or 0: something changed meanwhile. O(pairs).
local key = KEYS[1]
for i = 4, #ARGV, 2 do
  if (redis.call('HGET', key, ARGV[i]) or '') ~= ARGV[i + 1] then
    return 0
  end
end
local most = tonumber(ARGV[1])
if most >= 0 and redis.call('HLEN', key) - redis.call('HEXISTS', key, ARGV[2]) > most then
  return 0
end
if ARGV[3] == '' then
  redis.call('HDEL', key, ARGV[2])
else
  redis.call('HSET', key, ARGV[2], ARGV[3])
end
return 1
