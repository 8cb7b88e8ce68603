-- Notes the use of an API token, once in a while.
-- KEYS[1] fb:{ORG}:apitokenuse, id -> "MS ADDRESS"   KEYS[2] fb:{ORG}:apitokens
-- ARGV    id, address, milliseconds between two notes
-- Returns 1 where it was noted, else 0. O(1).
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local was = redis.call('HGET', KEYS[1], ARGV[1])
if was and now - tonumber(string.match(was, '^%d+')) < tonumber(ARGV[3]) then
  return 0
end
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 0 then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now) .. ' ' .. ARGV[2])
return 1
