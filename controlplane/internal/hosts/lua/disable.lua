-- Disables a host, or enables it again.
-- KEYS[1] fb:{ORG}:hosts
-- ARGV    id, cause ("" enables); the entry of the audit log and its MAC, "" where there is none
-- Returns {1}, {0} when it was so before, {-1} when there is no such host; and what audit.write returned. O(log n).
local id, cause = ARGV[1], ARGV[2]
local raw = redis.call('HGET', KEYS[1], id)
if not raw then
  return {-1}
end
local record, now = cjson.decode(raw), now_ms()
told.begin(ARGV[3], ARGV[4])
if (record.disabled ~= nil) == (cause ~= '') then
  return {0, told.finish(record.disabled and 'was.disabled=yes' or 'was.disabled=no')}
end
local route = route_of(id)
if cause ~= '' then
  record.disabled = now
  -- A quarantine isn't over because the host was disabled meanwhile.
  record.quarantined = route.state == 'quarantined' and route.cause or nil
  local seen = math.max(tonumber(redis.call('ZSCORE', key('live'), id) or '0'), tonumber(route.seen or 0))
  save_route(id, {state = 'disabled', since = now, seen = seen, cause = cause})
else
  if record.quarantined then
    save_route(id, {state = 'quarantined', since = now, seen = route.seen, cause = record.quarantined})
  else
    save_route(id, {state = 'offline', since = now, seen = route.seen, cause = 'enabled again, not connected since'})
  end
  record.disabled, record.quarantined = nil, nil
end
redis.call('HSET', KEYS[1], id, cjson.encode(record))
redis.call('ZREM', key('live'), id)
ring('kick ' .. id .. ' ' .. text(next_fence(id)))
return {1, told.finish(cause ~= '' and 'was.disabled=no disabled=yes' or 'was.disabled=yes disabled=no')}
