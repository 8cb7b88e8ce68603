-- Says that streams are alive.
-- KEYS[1] fb:{ORG}:hosts
-- ARGV    id, fence, id, fence, ...
-- Returns id, what, id, what, ... of those that are not as they were: "lost" when Redis lost the host, "deleted",
--         "quarantined", "disabled", "stale", or "back" when it counted as offline. O(streams · log n).
local now, out = text(now_ms()), {}
for i = 1, #ARGV, 2 do
  local id, what = ARGV[i], nil
  if fence_of(id) == ARGV[i + 1] then
    if redis.call('ZSCORE', key('live'), id) then
      redis.call('ZADD', key('live'), now, id)
    else
      local route = route_of(id)
      if route.lapsed then
        route.state, route.since, route.seen, route.cause, route.lapsed = 'online', tonumber(now), nil, nil, nil
        save_route(id, route)
        redis.call('ZADD', key('live'), now, id)
        what = 'back'
      else
        what = 'stale'
      end
    end
  elseif redis.call('HEXISTS', key('hostgone'), id) == 1 then
    what = 'deleted'
  elseif redis.call('HEXISTS', KEYS[1], id) == 0 then
    what = 'lost'
  else
    local state = route_of(id).state
    what = (state == 'quarantined' or state == 'disabled') and state or 'stale'
  end
  if what then
    out[#out + 1] = id
    out[#out + 1] = what
  end
end
return out
