-- Puts a letter into the queue, or back into it for later.
-- KEYS[1] fb:{mail}:due, id -> when it is to be sent, Unix milliseconds   KEYS[2] fb:{mail}:letters, id -> sealed letter
-- ARGV    id, sealed letter, milliseconds from now, how many may wait (0: it waits already, and stays gone where it is gone)
-- Returns 1 or 0. O(log n).
local most = tonumber(ARGV[4])
if most > 0 and redis.call('HLEN', KEYS[2]) >= most or most == 0 and redis.call('HEXISTS', KEYS[2], ARGV[1]) == 0 then
  return 0
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[3])), ARGV[1])
return 1
