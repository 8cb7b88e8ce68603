-- Forgets ephemeral hosts that were offline for their time. What each leaves in package sets is the caller's to clean up:
-- "vanished" remembers them until that is done.
-- KEYS[1] fb:{ORG}:hosts
-- ARGV    ids
-- Returns id, name, id, name, ... of those that were forgotten. O(ids · log n).
local now, out = now_ms(), {}
for _, id in ipairs(ARGV) do
  local raw, after = redis.call('HGET', KEYS[1], id), tonumber(redis.call('HGET', key('ephemeral'), id) or '0')
  if not raw then
    redis.call('HDEL', key('ephemeral'), id)
  elseif after > 0 and not redis.call('ZSCORE', key('live'), id) then
    local record, route = cjson.decode(raw), route_of(id)
    local since = math.max(tonumber(route.since or 0), tonumber(record.enrolled or 0), tonumber(record.keyed or 0))
    -- What a person disabled, or must look at, stays for people to see.
    if route.state ~= 'quarantined' and not record.disabled and now - since >= after then
      forget(id, record)
      redis.call('HSET', key('vanished'), id, record.name)
      out[#out + 1] = id
      out[#out + 1] = record.name
    end
  end
end
return out
