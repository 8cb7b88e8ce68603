-- Hears one answer to a challenge, as long as it had fewer than it may have.
-- KEYS[1] fb:challenge:HASH
-- ARGV    how many answers it hears
-- Returns its body, or "" where it is unknown, expired or was answered too often: then it is gone. O(1).
local body = redis.call('HGET', KEYS[1], 'body')
if not body then
  return ''
end
if redis.call('HINCRBY', KEYS[1], 'tries', 1) > tonumber(ARGV[1]) then
  redis.call('DEL', KEYS[1])
  return ''
end
return body
