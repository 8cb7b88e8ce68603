-- Gives a host another key on the word of the present one.
-- KEYS[1] fb:{ORG}:hosts
-- ARGV    id, present key, next key (base64); the entry of the audit log and its MAC, "" where there is none
-- Returns {"changed" | "stands", record as JSON, what audit.write returned}, or one of {"missing"}, {"deleted"}, {"disabled"},
--         {"quarantined"}, {"other key"}, {"taken"}. O(1).
local id, present, following = ARGV[1], ARGV[2], ARGV[3]
if redis.call('HEXISTS', key('hostgone'), id) == 1 then
  return {'deleted'}
end
local raw = redis.call('HGET', KEYS[1], id)
if not raw then
  return {'missing'}
end
local record = cjson.decode(raw)
if record.disabled then
  return {'disabled'}
end
if route_of(id).state == 'quarantined' then
  return {'quarantined'}
end
-- The answer was lost: whoever holds both keys is told again.
if record.key == following and record.former == present then
  return {'stands', raw}
end
if record.key ~= present then
  return {'other key'}
end
if redis.call('HEXISTS', key('hostkeys'), following) == 1 then
  return {'taken'}
end
told.begin(ARGV[4], ARGV[5])
record.former = present
rekey(id, record, following, now_ms())
return {'changed', cjson.encode(record), told.finish('')}
