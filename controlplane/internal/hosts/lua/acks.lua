-- Stores acknowledgements of many streams.
-- KEYS[1] fb:{ORG}:hosts
-- ARGV    ids, fences: arrays in MessagePack, of each at most 1000; then, for each run of them that says the same: how many,
--         inert or "-" (not said), exceptions (an Ack, binary; "" is none) or "-" (as before), number of cursors, then set
--         and "epoch version digest" for each
-- Returns the ids whose fence is stale. O(cursors), but one command a key: a ban has every host acknowledge.
local ids, sent = cmsgpack.unpack(ARGV[1]), cmsgpack.unpack(ARGV[2])
if #ids == 0 then
  return {}
end
local fences = redis.call('HMGET', key('fences'), unpack(ids))
local stale, sets, put, drop = {}, {}, {}, {}

local function list_of(to, name)
  local list = to[name]
  if not list then
    list = {n = 0}
    to[name] = list
  end
  return list
end

local function add(to, name, who, value)
  local list = list_of(to, name)
  local n = list.n
  for i = 1, #who do
    list[n + 1], list[n + 2] = who[i], value
    n = n + 2
  end
  list.n = n
end

local function add_all(to, name, who)
  local list = list_of(to, name)
  for i = 1, #who do
    list[list.n + i] = who[i]
  end
  list.n = list.n + #who
end

local at, i = 0, 3
while i <= #ARGV do
  local fresh, n, last = {}, 0, at + tonumber(ARGV[i])
  for k = at + 1, last do
    if fences[k] == sent[k] then
      n = n + 1
      fresh[n] = ids[k]
    else
      stale[#stale + 1] = ids[k]
    end
  end
  at = last
  local inert, exceptions, after = ARGV[i + 1], ARGV[i + 2], i + 4 + 2 * tonumber(ARGV[i + 3])
  for c = i + 4, after - 2, 2 do
    add(sets, ARGV[c], fresh, ARGV[c + 1])
  end
  if inert == '0' then
    add_all(drop, 'inert', fresh)
  elseif inert ~= '-' then
    add(put, 'inert', fresh, inert)
  end
  if exceptions == '' then
    add_all(drop, 'exceptions', fresh)
  elseif exceptions ~= '-' then
    add(put, 'exceptions', fresh, exceptions)
  end
  i = after
end
-- At most 1000 hosts at once: unpack takes no more than some thousand values.
local function write(command, name, list)
  for from = 1, list.n, 2000 do
    redis.call(command, key(name), unpack(list, from, math.min(from + 1999, list.n)))
  end
end
for set, list in pairs(sets) do
  write('HSET', 'acks:' .. set, list)
end
for name, list in pairs(put) do
  write('HSET', name, list)
end
for name, list in pairs(drop) do
  -- Mostly there is nothing to forget.
  if redis.call('HLEN', key(name)) > 0 then
    write('HDEL', name, list)
  end
end
if #stale < #ids then
  ring('acks *')
end
return stale
