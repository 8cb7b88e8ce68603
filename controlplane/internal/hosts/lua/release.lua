-- Ends the quarantine of a cloned identity: the next stream of it is trusted.
-- KEYS[1] fb:{ORG}:hosts
-- ARGV    id
-- Returns 1, 0 when it isn't quarantined, -1 when there is no such host. O(1).
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  return -1
end
local route = route_of(ARGV[1])
if route.state ~= 'quarantined' then
  return 0
end
save_route(ARGV[1], {state = 'offline', since = now_ms(), seen = route.seen, cause = 'released from quarantine, not connected since'})
return 1
