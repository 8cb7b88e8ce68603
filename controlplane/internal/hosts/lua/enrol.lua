-- Makes a host, or finds the one that has this public key; gives a known host a new key where that was proven or a person
-- said so; with ARGV[5] = "adopt" puts back one that Redis lost.
-- KEYS[1] fb:{ORG}:hosts
-- ARGV    id, wanted name, public key (base64), record without id and name as JSON, "enrol" or "adopt", facts (binary),
--         id of the host to enrol again or "", key that it proved to have had (base64) or "", the entry of the audit log and
--         its MAC, "" where there is none
-- Returns {"made" | "stands" | "again", id, name, what audit.write returned, id of another host that says it is the same
--         machine or ""}, or {"deleted"}, {"gone"}, {"disabled"}. O(hosts of the same name).
local id, wanted, public, mode, again, former = ARGV[1], ARGV[2], ARGV[3], ARGV[5], ARGV[7], ARGV[8]
if redis.call('HEXISTS', key('hostgone'), id) == 1 then
  return {'deleted'}
end
local stands = mode == 'adopt' and id or redis.call('HGET', key('hostkeys'), public)
if stands then
  local raw = redis.call('HGET', KEYS[1], stands)
  if raw then
    local record = cjson.decode(raw)
    if record.disabled and mode ~= 'adopt' then
      return {'disabled'}
    end
    told.begin(ARGV[9], ARGV[10])
    return {'stands', stands, record.name, told.finish('host=' .. stands .. ' name=' .. record.name), ''}
  end
end
local now = now_ms()
local target = again
if target == '' and former ~= '' then
  target = redis.call('HGET', key('hostkeys'), former) or ''
  -- Who of the two machines is the host is for a person to say.
  if target ~= '' and route_of(target).state == 'quarantined' then
    target = ''
  end
end
if target ~= '' then
  local raw = redis.call('HGET', KEYS[1], target)
  if not raw then
    return {'gone'}
  end
  local record = cjson.decode(raw)
  if record.disabled then
    return {'disabled'}
  end
  told.begin(ARGV[9], ARGV[10])
  record.former = nil
  local route = route_of(target)
  rekey(target, record, public, now)
  save_route(target, {state = 'offline', since = now, seen = route.seen, cause = 'enrolled again with a new key, not connected since'})
  redis.call('ZREM', key('live'), target)
  if ARGV[6] ~= '' then
    redis.call('HSET', key('facts'), target, ARGV[6])
  end
  return {'again', target, record.name, told.finish('host=' .. target .. ' name=' .. record.name .. ' key=new'), ''}
end
told.begin(ARGV[9], ARGV[10])
local name, n = wanted, 1
while redis.call('HEXISTS', key('hostnames'), string.lower(name)) == 1 do
  n = n + 1
  local suffix = '-' .. n
  name = string.sub(wanted, 1, 253 - #suffix) .. suffix
end
local record = cjson.decode(ARGV[4])
record.id, record.name = id, name
if not record.enrolled then
  record.enrolled = now
end
local twin = ''
if record.machine then
  twin = redis.call('HGET', key('machines'), record.machine) or ''
  if twin ~= '' and redis.call('HEXISTS', KEYS[1], twin) == 0 then
    twin = ''
  end
  redis.call('HSET', key('machines'), record.machine, id)
end
redis.call('HSET', KEYS[1], id, cjson.encode(record))
redis.call('HSET', key('hostnames'), string.lower(name), id)
redis.call('HSETNX', key('hostkeys'), public, id)
if record.ephemeral then
  redis.call('HSET', key('ephemeral'), id, text(record.ephemeral))
end
if ARGV[6] ~= '' then
  redis.call('HSET', key('facts'), id, ARGV[6])
end
directory_changed()
return {'made', id, name, told.finish('host=' .. id .. ' name=' .. name), twin}
