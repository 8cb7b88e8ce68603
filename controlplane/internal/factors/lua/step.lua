-- Takes a right code of a TOTP secret, once: codes of the same time step, or of one before, are refused from then on.
-- KEYS[1] fb:{PERSON}:totp
-- ARGV    the sealed secret that the code was checked with, the code's time step
-- Returns 1, or 0 where it was used before or the secret is another one now. O(1).
local t = redis.call('HMGET', KEYS[1], 'secret', 'step')
if t[1] ~= ARGV[1] or tonumber(t[2] or 0) >= tonumber(ARGV[2]) then
  return 0
end
redis.call('HSET', KEYS[1], 'step', ARGV[2])
return 1
