-- Finds hosts that were not heard for the presence TTL (their replica died, or lost Redis) and marks them offline.
-- KEYS[1] fb:{ORG}:hosts
-- ARGV    presence TTL ms, cause, most at a time
-- Returns id, name, id, name, ... O(found · log n).
local now = now_ms()
local out = {}
local found = redis.call('ZRANGEBYSCORE', key('live'), '-inf', text(now - tonumber(ARGV[1])), 'WITHSCORES', 'LIMIT', 0, tonumber(ARGV[3]))
for i = 1, #found, 2 do
  local id, seen = found[i], tonumber(found[i + 1])
  redis.call('ZREM', key('live'), id)
  local route = route_of(id)
  if route.state == 'online' then
    -- The fence stands: where the replica lives on and reaches Redis again, its stream may write and is online again.
    route.state, route.since, route.seen, route.cause = 'offline', seen, seen, ARGV[2]
    route.lapsed = true
    save_route(id, route)
    local raw = redis.call('HGET', KEYS[1], id)
    out[#out + 1] = id
    out[#out + 1] = raw and cjson.decode(raw).name or ''
  end
end
return out
