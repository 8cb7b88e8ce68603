-- Adds to what every replica must know of access tokens that are not yet expired, and tells them at once.
-- KEYS[1] fb:{revoked}:list, sorted set by when it was added   KEYS[2] fb:{revoked}:bell
-- ARGV    how long an entry is kept in milliseconds, entries
-- O(entries).
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
-- Never before what a replica has read up to, though the clock went back.
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2]
if last and tonumber(last) > now then
  now = tonumber(last)
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[1]))
for i = 2, #ARGV do
  redis.call('ZADD', KEYS[1], now, ARGV[i])
  redis.call('SPUBLISH', KEYS[2], ARGV[i])
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return now
