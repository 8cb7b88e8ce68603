-- Makes a join token.
-- KEYS[1] fb:{ORG}:join:ID   KEYS[2] fb:{ORG}:joins
-- ARGV    id, hash, life in ms, uses, tags as JSON, note, actor, most tokens at a time, ms to keep it after its expiry,
--         ms offline after which what it enrols is deleted (0: it stays), the host that it enrols again or "", when it was
--         created in ms, its seal
-- Returns 1, or 0 when there are too many. O(log n) and what expired.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[8]) or redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
local created = tonumber(ARGV[12])
local expires = created + tonumber(ARGV[3])
redis.call('HSET', KEYS[1], 'hash', ARGV[2], 'created', string.format('%.0f', created), 'expires', string.format('%.0f', expires),
  'uses', ARGV[4], 'left', ARGV[4], 'tags', ARGV[5], 'note', ARGV[6], 'actor', ARGV[7], 'ephemeral', ARGV[10], 'host', ARGV[11],
  'seal', ARGV[13])
redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', expires + tonumber(ARGV[9])))
redis.call('ZADD', KEYS[2], string.format('%.0f', expires), ARGV[1])
return 1
