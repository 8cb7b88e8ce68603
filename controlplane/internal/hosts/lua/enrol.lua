-- Makes a host, or finds the one that has this public key; with ARGV[5] = "adopt" puts back one that Redis lost.
-- KEYS[1] fb:{ORG}:hosts
-- ARGV    id, wanted name, public key (base64), record without id and name as JSON, "enrol" or "adopt", facts (binary)
-- Returns {"made" | "stands", id, name} or {"deleted"}. O(hosts of the same name).
local id, wanted, public, mode = ARGV[1], ARGV[2], ARGV[3], ARGV[5]
if redis.call('HEXISTS', key('hostgone'), id) == 1 then
  return {'deleted'}
end
local stands = mode == 'adopt' and id or redis.call('HGET', key('hostkeys'), public)
if stands then
  local raw = redis.call('HGET', KEYS[1], stands)
  if raw then
    return {'stands', stands, cjson.decode(raw).name}
  end
end
local name, n = wanted, 1
while redis.call('HEXISTS', key('hostnames'), string.lower(name)) == 1 do
  n = n + 1
  local suffix = '-' .. n
  name = string.sub(wanted, 1, 253 - #suffix) .. suffix
end
local record = cjson.decode(ARGV[4])
record.id, record.name = id, name
if not record.enrolled then
  record.enrolled = now_ms()
end
redis.call('HSET', KEYS[1], id, cjson.encode(record))
redis.call('HSET', key('hostnames'), string.lower(name), id)
redis.call('HSETNX', key('hostkeys'), public, id)
if ARGV[6] ~= '' then
  redis.call('HSET', key('facts'), id, ARGV[6])
end
directory_changed()
return {'made', id, name}
