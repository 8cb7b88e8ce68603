-- Sets the password or the address of an account, if both are what they were: of many who do so at once, one does. A new
-- password makes strangers of the devices that were known before.
-- KEYS[1] fb:{PERSON}:account
-- ARGV    the password and the address as they were read, "password" or "email", the new one
-- Returns 1 or 0. O(1).
local a = redis.call('HMGET', KEYS[1], 'password', 'email')
if a[1] ~= ARGV[1] or a[2] ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[3], ARGV[4])
if ARGV[3] == 'password' then
  local time = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'secured', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
end
return 1
