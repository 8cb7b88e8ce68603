-- Forgets a host and leaves a tombstone, so that its grant brings it back no more. Ends its stream.
-- KEYS[1] fb:{ORG}:hosts
-- ARGV    id, then the sets it may have acknowledged
-- Returns its name, or "" when there is no such host. O(sets).
local id = ARGV[1]
local raw = redis.call('HGET', KEYS[1], id)
if not raw then
  return ''
end
local record = cjson.decode(raw)
redis.call('HSET', key('hostgone'), id, text(now_ms()))
redis.call('HDEL', KEYS[1], id)
redis.call('HDEL', key('hostnames'), string.lower(record.name))
if redis.call('HGET', key('hostkeys'), record.key) == id then
  redis.call('HDEL', key('hostkeys'), record.key)
end
for _, name in ipairs({'routes', 'facts', 'inert', 'exceptions', 'health'}) do
  redis.call('HDEL', key(name), id)
end
for i = 2, #ARGV do
  redis.call('HDEL', key('acks:' .. ARGV[i]), id)
end
redis.call('ZREM', key('live'), id)
redis.call('UNLINK', key('cmds:' .. id), key('results:' .. id))
directory_changed()
-- The fence stays, and refuses what a late stream writes.
ring('kick ' .. id .. ' ' .. text(next_fence(id)))
return record.name
