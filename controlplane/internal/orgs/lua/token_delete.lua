-- Ends an API token.
-- KEYS[1] fb:{ORG}:apitokens   KEYS[2] fb:{ORG}:apitokenids   KEYS[3] fb:{ORG}:apitokenids:PERSON, or KEYS[2] again
-- KEYS[4] fb:{ORG}:apitokenuse
-- ARGV    id, the entry of the audit log and its MAC ("" for none)
-- Returns {1}, or {0} where there was none; and what audit.write returned. O(log n).
if ARGV[2] ~= '' then
  audit.look(string.sub(KEYS[1], 1, -10))
end
local gone = redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('HDEL', KEYS[4], ARGV[1])
if gone == 0 or ARGV[2] == '' then
  return {gone, {}}
end
audit.add(ARGV[2], ARGV[3])
return {gone, audit.write()}
