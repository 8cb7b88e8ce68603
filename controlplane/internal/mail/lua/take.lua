-- Takes the letter that has been due the longest; nobody else gets it for a while.
-- KEYS[1] fb:{mail}:due   KEYS[2] fb:{mail}:letters
-- ARGV    for how long, milliseconds
-- Returns {id, sealed letter}, or {} where none is due. O(log n).
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local id = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now), 'LIMIT', 0, 1)[1]
if not id then
  return {}
end
local letter = redis.call('HGET', KEYS[2], id)
if not letter then
  redis.call('ZREM', KEYS[1], id)
  return {id, ''}
end
redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[1])), id)
return {id, letter}
