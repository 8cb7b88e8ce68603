-- Replaces a passkey's record, if it is still the one that was read: two uses at once can't both count from the same
-- sign count, and one that was deleted meanwhile stays so.
-- KEYS[1] fb:{PERSON}:passkeys, id -> record
-- ARGV    id, the record as it was read, the new one
-- Returns 1 or 0. O(1).
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
