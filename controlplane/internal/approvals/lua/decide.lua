-- Decides what waits: of many that try, one does.
-- KEYS[1] fb:{ORG}:approvals
-- ARGV    id, new state, id and name of who decides, reason, the entry of the audit log and its MAC, "" where there is none
-- Returns {"ok", what audit.write returned}, or why not: {"missing"}, {"expired"}, or {the state that it has}. O(log n).
local base = string.sub(KEYS[1], 1, -10)
local one = base .. 'approval:' .. ARGV[1]
local was = redis.call('HMGET', one, 'state', 'expires')
if not was[1] then
  return {'missing'}
end
if was[1] ~= 'waiting' then
  return {was[1]}
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
if now >= tonumber(was[2]) then
  return {'expired'}
end
if ARGV[6] ~= '' then
  audit.look(base)
end
redis.call('HSET', one, 'state', ARGV[2], 'deciderid', ARGV[3], 'decider', ARGV[4], 'reason', ARGV[5], 'decided', string.format('%.0f', now))
-- It doesn't count as waiting any more, and is kept its time from now.
redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
if ARGV[6] ~= '' then
  audit.add(ARGV[6], ARGV[7], 'was.state=waiting state=' .. ARGV[2])
  return {'ok', audit.write()}
end
return {'ok', {}}
