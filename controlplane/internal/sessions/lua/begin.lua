-- Begins a session; of a person's, the oldest goes when there are too many.
-- KEYS[1] fb:{PERSON}:session:ID   KEYS[2] fb:{PERSON}:sessions, session -> when it ends, Unix milliseconds
-- ARGV    id, organisation, address, user agent, life and idle in milliseconds, how many sessions there may be, with what the
--         person signed in, when they proved to be that (Unix milliseconds; "": now)
-- Returns {now, ends, the session that has to go or ""}: the caller revokes it, then deletes it. O(sessions).
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local ends = now + tonumber(ARGV[5])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local out = ''
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[7]) then
  out = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
end
redis.call('HSET', KEYS[1], 'org', ARGV[2], 'address', ARGV[3], 'agent', ARGV[4], 'began', now, 'used', now, 'ends', ends, 'turn', 0, 'turned', now,
  'proved', ARGV[9] == '' and now or ARGV[9], 'method', ARGV[8])
redis.call('PEXPIRE', KEYS[1], math.min(tonumber(ARGV[5]), tonumber(ARGV[6])))
redis.call('ZADD', KEYS[2], ends, ARGV[1])
redis.call('PEXPIREAT', KEYS[2], redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2])
return { now, ends, out }
