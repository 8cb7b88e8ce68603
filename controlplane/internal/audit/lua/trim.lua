-- Drops the oldest entries and appends the one that says so, from which verifying begins.
-- KEYS[1] fb:{ORG}:audit
-- ARGV    number and hash of the newest entry to drop, the new entry, its MAC
-- Returns as audit.write; {} where that entry isn't there as said. O(dropped).
local base = string.sub(KEYS[1], 1, -6)
audit.look(base)
local id = ARGV[1] .. '-0'
local found = redis.call('XRANGE', KEYS[1], id, id)[1]
local fields = {}
for i = 1, found and #found[2] or 0, 2 do fields[found[2][i]] = found[2][i + 1] end
if fields.h ~= ARGV[2] then return {} end
audit.add(ARGV[3], ARGV[4])
local reply = audit.write()
redis.call('HSET', base .. 'auditmeta', 'bn', ARGV[1], 'bh', ARGV[2])
redis.call('XTRIM', KEYS[1], 'MINID', string.format('%.0f', tonumber(ARGV[1]) + 1) .. '-0')
local open = redis.call('HGETALL', base .. 'auditopen')
for i = 1, #open, 2 do
  if tonumber(open[i + 1]) <= tonumber(ARGV[1]) then redis.call('HDEL', base .. 'auditopen', open[i]) end
end
return reply
