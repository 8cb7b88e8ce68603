-- Ends a host's presence, if it is still this stream's.
-- KEYS[1] fb:{ORG}:hosts
-- ARGV    id, fence, cause
-- Returns the host's name when it went offline by this, else "". O(log n).
local id = ARGV[1]
if fence_of(id) ~= ARGV[2] then
  return ''
end
next_fence(id)
local route = route_of(id)
local seen = tonumber(redis.call('ZSCORE', key('live'), id) or '0')
redis.call('ZREM', key('live'), id)
if route.state ~= 'online' then
  return ''
end
local now = now_ms()
route.state, route.since, route.seen, route.cause, route.replica = 'offline', now, math.max(seen, 0), ARGV[3], ''
save_route(id, route)
local raw = redis.call('HGET', KEYS[1], id)
return raw and cjson.decode(raw).name or ''
