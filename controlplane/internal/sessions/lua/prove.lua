-- Notes something in a session, if it still is: when the person proved again who they are, or that the others were ended.
-- KEYS[1] fb:{PERSON}:session:ID
-- ARGV    "proof" or "vouched", Unix milliseconds; or "alone", anything
-- Returns 1 or 0. O(1).
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
