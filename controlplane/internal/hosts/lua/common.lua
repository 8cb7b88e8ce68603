-- Shared by every script of package hosts. KEYS[1] is always fb:{ORG}:hosts; the other keys of the organisation are
-- named from it, so all of them are in the same slot.
local base = string.sub(KEYS[1], 1, -6)

local function key(name)
  return base .. name
end

-- Fails, before anything is written, where a key can't be reached: on a cluster that moves the slot, keys that have gone to the
-- other server are missing, and so is one that never was, for nobody can tell. Redis undoes nothing of a script that fails later.
local function look(...)
  redis.call('EXISTS', ...)
end
look(KEYS[1], key('hostgone'), key('hostnames'), key('hostkeys'), key('hostsver'), key('machines'), key('ephemeral'), key('vanished'),
  key('fences'), key('routes'), key('live'), key('facts'), key('health'), key('inert'), key('exceptions'),
  key('acks:all'), key('acks:allow'), key('acks:hosts'))

local function now_us()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local function now_ms()
  return math.floor(now_us() / 1000)
end

-- Numbers as text without an exponent or a fraction.
local function text(n)
  return string.format('%.0f', n)
end

local function route_of(id)
  local raw = redis.call('HGET', key('routes'), id)
  return raw and cjson.decode(raw) or {}
end

local function save_route(id, route)
  redis.call('HSET', key('routes'), id, cjson.encode(route))
end

local function fence_of(id)
  return redis.call('HGET', key('fences'), id)
end

-- Greater than every fence before it, also than those that a loss of Redis made it forget: it is a time.
local function next_fence(id)
  local n = math.max(now_us(), tonumber(fence_of(id) or '0') + 1)
  redis.call('HSET', key('fences'), id, text(n))
  return n
end

-- Replicas keep names and tags of hosts until this changes.
local function directory_changed()
  redis.call('SET', key('hostsver'), text(math.max(now_us(), tonumber(redis.call('GET', key('hostsver')) or '0') + 1)))
end

local function ring(message)
  redis.call('SPUBLISH', key('bell'), message)
end

-- Gives a host another key; the former one is refused from here on, and so is the stream that it opened.
local function rekey(id, record, public, now)
  if redis.call('HGET', key('hostkeys'), record.key) == id then
    redis.call('HDEL', key('hostkeys'), record.key)
  end
  record.key, record.keyed, record.granted = public, now, nil
  redis.call('HSET', key('hostkeys'), public, id)
  redis.call('HSET', KEYS[1], id, cjson.encode(record))
  directory_changed()
  ring('kick ' .. id .. ' ' .. text(next_fence(id)))
end

-- Forgets a host and leaves a tombstone, so that its grant brings it back no more. Ends its stream.
local function forget(id, record)
  look(key('cmds:' .. id), key('results:' .. id))
  for k, v in pairs(record.tags or {}) do
    look(key('acks:tag:' .. k .. '=' .. v))
  end
  redis.call('HSET', key('hostgone'), id, text(now_ms()))
  redis.call('HDEL', KEYS[1], id)
  if redis.call('HGET', key('hostnames'), string.lower(record.name)) == id then
    redis.call('HDEL', key('hostnames'), string.lower(record.name))
  end
  if redis.call('HGET', key('hostkeys'), record.key) == id then
    redis.call('HDEL', key('hostkeys'), record.key)
  end
  if record.machine and redis.call('HGET', key('machines'), record.machine) == id then
    redis.call('HDEL', key('machines'), record.machine)
  end
  for _, name in ipairs({'routes', 'facts', 'inert', 'exceptions', 'health', 'ephemeral'}) do
    redis.call('HDEL', key(name), id)
  end
  for _, set in ipairs({'all', 'allow', 'hosts'}) do
    redis.call('HDEL', key('acks:' .. set), id)
  end
  for k, v in pairs(record.tags or {}) do
    redis.call('HDEL', key('acks:tag:' .. k .. '=' .. v), id)
  end
  redis.call('ZREM', key('live'), id)
  redis.call('UNLINK', key('cmds:' .. id), key('results:' .. id))
  directory_changed()
  -- The fence stays, and refuses what a late stream writes.
  ring('kick ' .. id .. ' ' .. text(next_fence(id)))
end
