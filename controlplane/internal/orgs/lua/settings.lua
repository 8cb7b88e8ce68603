-- Changes one setting of an organisation; a change that changes nothing is none.
-- KEYS[1] fb:{ORG}:meta   KEYS[2] fb:{ORG}:bell
-- ARGV    "mode" and its number, or "pause" and for how many ms (0 ends a pause); the entry of the audit log and its MAC,
--         "" where there is none
-- Returns {-1} when there is no such organisation, {0} when nothing changed, {1}; and what audit.write returned. O(1).
local meta = redis.call('HMGET', KEYS[1], 'name', 'mode', 'paused_until')
if not meta[1] then
  return {-1}
end
local function tell(found)
  if ARGV[3] ~= '' then
    audit.add(ARGV[3], ARGV[4], found)
  end
  return #audit.entries > 0 and audit.write() or {}
end
if ARGV[3] ~= '' then
  audit.look(string.sub(KEYS[1], 1, -5))
end
if ARGV[1] == 'mode' then
  if meta[2] == ARGV[2] then
    return {0, tell('was.mode=' .. meta[2])}
  end
  redis.call('HSET', KEYS[1], 'mode', ARGV[2])
  -- What was evaluated under the old mode must not be written under the new one.
  redis.call('HINCRBY', KEYS[1], 'policy', 1)
else
  local until_ms = 0
  if tonumber(ARGV[2]) > 0 then
    local time = redis.call('TIME')
    until_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + tonumber(ARGV[2])
  end
  if tonumber(meta[3]) == until_ms then
    return {0, tell('was.paused_until_unix_ms=' .. meta[3])}
  end
  redis.call('HSET', KEYS[1], 'paused_until', string.format('%.0f', until_ms))
  meta.found = 'was.paused_until_unix_ms=' .. meta[3] .. ' paused_until_unix_ms=' .. string.format('%.0f', until_ms)
end
redis.call('HINCRBY', KEYS[1], 'settings_version', 1)
redis.call('SPUBLISH', KEYS[2], 'settings')
return {1, tell(meta.found or 'was.mode=' .. meta[2])}
