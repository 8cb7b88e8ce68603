-- Stores acknowledgements of many streams.
-- KEYS[1] fb:{ORG}:hosts
-- ARGV    for each, at most 1000: id, fence, inert or "-" (not said), exceptions (an Ack, binary; "" is none) or "-" (as
--         before), number of cursors, then set and "epoch version digest" for each
-- Returns the ids whose fence is stale. O(cursors), but one command a key: a ban has every host acknowledge.
local ids, starts, i = {}, {}, 1
while i <= #ARGV do
  ids[#ids + 1], starts[#starts + 1] = ARGV[i], i
  i = i + 5 + 2 * tonumber(ARGV[i + 4])
end
if #ids == 0 then
  return {}
end
local fences = redis.call('HMGET', key('fences'), unpack(ids))
local stale, sets, put, drop = {}, {}, {}, {}

local function list_of(to, name)
  local list = to[name]
  if not list then
    list = {}
    to[name] = list
  end
  return list
end

local function add(to, name, id, value)
  local list = list_of(to, name)
  list[#list + 1] = id
  list[#list + 1] = value
end

for n, id in ipairs(ids) do
  local at = starts[n]
  if fences[n] == ARGV[at + 1] then
    local inert, exceptions = ARGV[at + 2], ARGV[at + 3]
    for c = at + 5, at + 3 + 2 * tonumber(ARGV[at + 4]), 2 do
      add(sets, ARGV[c], id, ARGV[c + 1])
    end
    if inert == '0' then
      add(drop, 'inert', id)
    elseif inert ~= '-' then
      add(put, 'inert', id, inert)
    end
    if exceptions == '' then
      add(drop, 'exceptions', id)
    elseif exceptions ~= '-' then
      add(put, 'exceptions', id, exceptions)
    end
  else
    stale[#stale + 1] = id
  end
end
for set, pairs_of in pairs(sets) do
  redis.call('HSET', key('acks:' .. set), unpack(pairs_of))
end
for name, pairs_of in pairs(put) do
  redis.call('HSET', key(name), unpack(pairs_of))
end
for name, gone in pairs(drop) do
  redis.call('HDEL', key(name), unpack(gone))
end
if #stale < #ids then
  ring('acks *')
end
return stale
