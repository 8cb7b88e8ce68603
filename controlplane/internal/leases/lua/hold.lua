-- Takes or renews a lease, or gives it back. Each new holder gets a greater term, and what the one before it had is kept.
-- KEYS[1] fb:lease:NAME: a hash of holder, until (ms), term, since (ms), released (1), and history: a JSON list of the terms
--         before, newest first: holder, term, since, ended, released
-- ARGV    holder, life in ms (0 gives it back), how many terms are kept
-- Returns the term when the holder has it, else 0. O(terms kept).
local lease = redis.call('HMGET', KEYS[1], 'holder', 'until', 'term', 'since', 'released', 'history')
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local function text(n)
  return string.format('%.0f', n)
end
local life, term = tonumber(ARGV[2]), tonumber(lease[3] or '0')
if lease[1] ~= ARGV[1] then
  if life == 0 or (lease[1] and tonumber(lease[2]) > now) then
    return 0
  end
  if lease[1] then
    local history = cjson.decode(lease[6] or '[]')
    -- A release that kept no beginning had terms that began when they say.
    table.insert(history, 1, {holder = lease[1], term = lease[3], since = lease[4] or lease[3], ended = lease[2], released = lease[5] == '1'})
    while #history > tonumber(ARGV[3]) do
      table.remove(history)
    end
    redis.call('HSET', KEYS[1], 'history', cjson.encode(history))
  end
  term = math.max(term + 1, now)
  redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'term', text(term), 'since', text(now))
end
redis.call('HSET', KEYS[1], 'until', text(now + life), 'released', life == 0 and '1' or '0')
return life == 0 and 0 or term
