-- The set-up link: one at a time, used by one caller at a time.
-- KEYS[1] fb:setup, a hash: hash (of the link's secret), url, pin; claim (the attempt that uses it now), until (Unix ms)
-- ARGV    what, and for
--   offer   hash, life in ms, "1" to replace a link that stands, url, pin ("": what stands there)
--   claim   hash, attempt, how long in ms
--   leave   attempt
--   end     -
-- Returns {answer, url, pin}: ok; stands (another link), busy (it is being used), unknown (another link, or none). O(1).
local key, what = KEYS[1], ARGV[1]
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local function busy()
  return tonumber(redis.call('HGET', key, 'until') or '0') > now
end
if what == 'offer' then
  local stands = redis.call('HEXISTS', key, 'hash') == 1
  if stands and ARGV[4] ~= '1' then
    return { 'stands', '', '' }
  end
  if stands and busy() then
    return { 'busy', '', '' }
  end
  local url, pin = ARGV[5], ARGV[6]
  if url == '' then
    url, pin = redis.call('HGET', key, 'url') or '', redis.call('HGET', key, 'pin') or ''
  end
  redis.call('DEL', key)
  redis.call('HSET', key, 'hash', ARGV[2], 'url', url, 'pin', pin)
  redis.call('PEXPIRE', key, ARGV[3])
  return { 'ok', url, pin }
end
if what == 'claim' then
  if redis.call('HGET', key, 'hash') ~= ARGV[2] then
    return { 'unknown', '', '' }
  end
  if busy() then
    return { 'busy', '', '' }
  end
  redis.call('HSET', key, 'claim', ARGV[3], 'until', string.format('%.0f', now + tonumber(ARGV[4])))
  return { 'ok', '', '' }
end
if what == 'leave' then
  if redis.call('HGET', key, 'claim') == ARGV[2] then
    redis.call('HDEL', key, 'claim', 'until')
  end
  return { 'ok', '', '' }
end
redis.call('DEL', key)
return { 'ok', '', '' }
