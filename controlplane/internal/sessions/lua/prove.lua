-- Notes when the person of a session proved again who they are, if the session still is.
-- KEYS[1] fb:{PERSON}:session:ID
-- ARGV    "proof" or "vouched", Unix milliseconds
-- Returns 1 or 0. O(1).
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
