-- Appends one entry.
-- KEYS[1] fb:{ORG}:audit
-- ARGV    the entry, its MAC, "begun", "ended" or "", and the id that both ends have
-- Returns as audit.write. O(1).
local base = string.sub(KEYS[1], 1, -6)
audit.look(base)
local entry = audit.add(ARGV[1], ARGV[2])
local reply = audit.write()
if ARGV[3] == 'begun' then
  redis.call('HSET', base .. 'auditopen', ARGV[4], entry.n)
elseif ARGV[3] == 'ended' then
  redis.call('HDEL', base .. 'auditopen', ARGV[4])
end
return reply
