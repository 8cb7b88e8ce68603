-- Shared by every script of package hosts. KEYS[1] is always fb:{ORG}:hosts; the other keys of the organisation are
-- named from it, so all of them are in the same slot.
local base = string.sub(KEYS[1], 1, -6)

local function key(name)
  return base .. name
end

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
