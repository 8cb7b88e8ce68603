-- Says what needs a second person.
-- KEYS[1] fb:{ORG}:approvalpolicy
-- ARGV    the policy (sealed), as text for the audit log; the entry of the audit log and its MAC, "" where there is none
-- Returns what audit.write returned. O(1).
local base = string.sub(KEYS[1], 1, -15)
local function plain(sealed) return sealed and string.match(sealed, '^[%d ]+%d') or 'none' end
local found = 'was.policy=' .. string.gsub(plain(redis.call('GET', KEYS[1])), ' ', '/') .. ' policy=' .. string.gsub(ARGV[2], ' ', '/')
if ARGV[3] ~= '' then
  audit.look(base)
end
redis.call('SET', KEYS[1], ARGV[1])
if ARGV[3] ~= '' then
  audit.add(ARGV[3], ARGV[4], found)
  return audit.write()
end
return {}
