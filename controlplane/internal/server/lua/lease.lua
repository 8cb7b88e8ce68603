-- Takes or renews a lease. Each new holder gets a greater term.
-- KEYS[1] fb:lease:NAME
-- ARGV    holder, life in ms
-- Returns the term when the holder has it, else 0. O(1).
local lease = redis.call('HMGET', KEYS[1], 'holder', 'until', 'term')
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local term = tonumber(lease[3] or '0')
if lease[1] ~= ARGV[1] then
  if lease[1] and tonumber(lease[2]) > now then
    return 0
  end
  term = math.max(term + 1, now)
end
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'until', string.format('%.0f', now + tonumber(ARGV[2])), 'term', string.format('%.0f', term))
return term
