-- Gives a host's stream its fence: from here on, what an older stream of the host writes is refused.
--
-- An instance that comes back within the window after another live one displaced it means that two processes use one
-- identity: each would displace the other for ever. Both are cut and the host is quarantined until a person releases it.
--
-- KEYS[1] fb:{ORG}:hosts
-- ARGV    id, instance, replica, presence TTL ms, clone window ms, facts (binary), public key as base64,
--         when its grant was made, Unix s
-- Returns {"ok", fence, name, "1" when it was not online before, tags as JSON, mark of its stored events (package sets)}, {"missing"}, {"deleted"}, {"other key"}, {"disabled", cause},
--         {"quarantined", cause} or {"cloned", cause}. O(log n).
local id, instance, replica = ARGV[1], ARGV[2], ARGV[3]
local ttl, window = tonumber(ARGV[4]), tonumber(ARGV[5])
look(key('hw'))
if redis.call('HEXISTS', key('hostgone'), id) == 1 then
  return {'deleted'}
end
local raw = redis.call('HGET', KEYS[1], id)
if not raw then
  return {'missing'}
end
local record = cjson.decode(raw)
local now = now_ms()
local route = route_of(id)
if record.key ~= ARGV[7] then
  -- Redis lost the host, and a former grant was presented before this one, which is newer.
  if not record.granted or tonumber(ARGV[8]) <= record.granted then
    return {'other key'}
  end
  rekey(id, record, ARGV[7], now)
  record.granted = tonumber(ARGV[8])
  redis.call('HSET', KEYS[1], id, cjson.encode(record))
end
if record.disabled then
  return {'disabled', route.cause or 'disabled'}
end
if route.state == 'quarantined' then
  return {'quarantined', route.cause}
end
local seen = tonumber(redis.call('ZSCORE', key('live'), id) or '0')
local online = route.state == 'online' and seen > 0 and now - seen < ttl
local displaced = {}
for other, at in pairs(route.displaced or {}) do
  if now - at < window then
    displaced[other] = at
  end
end
if online and route.instance ~= instance then
  if displaced[instance] then
    local n = next_fence(id)
    route = {
      state = 'quarantined', since = now, seen = now, replica = '',
      cause = 'two running agents use this identity, one of them through ' .. replica ..
        '; stop one (a copied disk or machine image is the usual cause: enrol the copy anew), then release the host',
    }
    save_route(id, route)
    redis.call('ZREM', key('live'), id)
    ring('kick ' .. id .. ' ' .. text(n))
    return {'cloned', route.cause}
  end
  displaced[route.instance] = now
end
local n = next_fence(id)
local since = online and route.since or now
route = {state = 'online', instance = instance, replica = replica, since = since, n = text(n)}
if next(displaced) then
  route.displaced = displaced
end
save_route(id, route)
redis.call('ZADD', key('live'), text(now), id)
if ARGV[6] ~= '' then
  redis.call('HSET', key('facts'), id, ARGV[6])
end
ring('kick ' .. id .. ' ' .. text(n))
-- No older stream stores events any more: the mark stands until this one does.
return {'ok', text(n), record.name, online and '0' or '1', cjson.encode(record.tags or {}), redis.call('HGET', key('hw'), id) or ''}
