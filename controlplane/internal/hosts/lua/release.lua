-- Ends the quarantine of a cloned identity: the next stream of it is trusted.
-- KEYS[1] fb:{ORG}:hosts
-- ARGV    id; the entry of the audit log and its MAC, "" where there is none
-- Returns {1}, {0} when it isn't quarantined, {-1} when there is no such host; and what audit.write returned. O(1).
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  return {-1}
end
told.begin(ARGV[2], ARGV[3])
local route = route_of(ARGV[1])
if route.state ~= 'quarantined' then
  return {0, told.finish('was.quarantined=no')}
end
save_route(ARGV[1], {state = 'offline', since = now_ms(), seen = route.seen, cause = 'released from quarantine, not connected since'})
return {1, told.finish('was.quarantined=yes quarantined=no')}
