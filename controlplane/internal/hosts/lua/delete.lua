-- Forgets a host: see forget.
-- KEYS[1] fb:{ORG}:hosts
-- ARGV    id; the entry of the audit log and its MAC, "" where there is none
-- Returns {name, what audit.write returned}, {} when there is no such host. O(tags).
local raw = redis.call('HGET', KEYS[1], ARGV[1])
if not raw then
  return {}
end
told.begin(ARGV[2], ARGV[3])
local record = cjson.decode(raw)
forget(ARGV[1], record)
return {record.name, told.finish('')}
