-- Seals the newest entry.
-- KEYS[1] fb:{ORG}:auditmeta
-- ARGV    number, hash, seal
-- Returns 1; 0 where a newer one is sealed. O(1).
local sealed = tonumber(redis.call('HGET', KEYS[1], 'sn') or '0')
local n = tonumber(redis.call('HGET', KEYS[1], 'n') or '0')
-- A seal beyond the end is of entries that were lost.
if sealed > tonumber(ARGV[1]) and sealed <= n then return 0 end
redis.call('HSET', KEYS[1], 'sn', ARGV[1], 'sh', ARGV[2], 'sm', ARGV[3])
return 1
