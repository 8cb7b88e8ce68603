-- Makes an organisation's settings unless they stand.
-- KEYS[1] fb:{ORG}:meta
-- ARGV    name, mode, 1 for one that never was before: package sets then has nothing to rebuild
-- Returns 1 when it made them, 0 when they stood. O(1).
if redis.call('HEXISTS', KEYS[1], 'name') == 1 then
  return 0
end
local time = redis.call('TIME')
local now = time[1] .. string.format('%03d', math.floor(tonumber(time[2]) / 1000))
redis.call('HSET', KEYS[1], 'name', ARGV[1], 'mode', ARGV[2], 'paused_until', '0', 'settings_version', '1', 'created', now)
if ARGV[3] == '1' then
  redis.call('HSET', KEYS[1], 'fresh', '1')
end
return 1
