-- Keeps a request until somebody approves it.
-- KEYS[1] fb:{ORG}:approvals
-- ARGV    id, the request (sealed), ms it waits, most that may wait, ms that a decided one is kept, the entry of the audit log
--         and its MAC, "" where there is none
-- Returns {created, expires, what audit.write returned}, or {} when too many wait. O(log n) and what is forgotten.
local base = string.sub(KEYS[1], 1, -10)
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - tonumber(ARGV[5])))
if redis.call('ZCOUNT', KEYS[1], string.format('(%.0f', now), '+inf') >= tonumber(ARGV[4]) then
  return {}
end
if ARGV[6] ~= '' then
  audit.look(base)
end
local created, expires = string.format('%.0f', now), string.format('%.0f', now + tonumber(ARGV[3]))
local one = base .. 'approval:' .. ARGV[1]
redis.call('HSET', one, 'request', ARGV[2], 'state', 'waiting', 'created', created, 'expires', expires)
redis.call('PEXPIREAT', one, string.format('%.0f', now + tonumber(ARGV[3]) + tonumber(ARGV[5])))
redis.call('ZADD', KEYS[1], expires, ARGV[1])
local wrote = {}
if ARGV[6] ~= '' then
  audit.add(ARGV[6], ARGV[7], 'approval=' .. ARGV[1])
  wrote = audit.write()
end
return {created, expires, wrote}
