-- Sets the password and the address of an account, if both are what they were: of many who do so at once, one does.
-- KEYS[1] fb:{PERSON}:account
-- ARGV    password record and address as they were read, the new ones, "1" where the password is another one: it makes
--         strangers of the devices that were known before
-- Returns 1 or 0. O(1).
local a = redis.call('HMGET', KEYS[1], 'password', 'email')
if a[1] ~= ARGV[1] or a[2] ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], 'password', ARGV[3], 'email', ARGV[4])
if ARGV[5] == '1' then
  local time = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'secured', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
end
return 1
