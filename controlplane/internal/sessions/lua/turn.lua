-- Takes a refresh token: the session's turn goes up by one, and the token of the new turn is the next. The token of the
-- turn before it is taken for a moment longer, with the same outcome: two tabs, or an answer that was lost.
-- KEYS[1] fb:{PERSON}:session:ID
-- ARGV    turn of the token, grace and idle in milliseconds, address, user agent
-- Returns {"ok", turn, now, ends, organisation, proved, method}, {"none"}, or {"again", turn}: used before, longer ago. O(1).
local s = redis.call('HMGET', KEYS[1], 'turn', 'turned', 'ends', 'org', 'proved', 'method')
if not s[1] then
  return { 'none' }
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local turn, turned, ends, given = tonumber(s[1]), tonumber(s[2]), tonumber(s[3]), tonumber(ARGV[1])
if now >= ends or given > turn then
  return { 'none' }
end
if given == turn then
  turn = turn + 1
  redis.call('HSET', KEYS[1], 'turn', turn, 'turned', now, 'used', now, 'address', ARGV[4], 'agent', ARGV[5])
  redis.call('PEXPIRE', KEYS[1], math.min(ends - now, tonumber(ARGV[3])))
elseif given < turn - 1 or now - turned > tonumber(ARGV[2]) then
  return { 'again', turn }
end
return { 'ok', turn, now, ends, s[4], tonumber(s[5] or 0), s[6] or '' }
