-- Makes an API token.
-- KEYS[1] fb:{ORG}:apitokens, id -> the sealed record   KEYS[2] fb:{ORG}:apitokenids, ids in order
-- KEYS[3] fb:{ORG}:apitokenids:PERSON, a person's in order; "" for the organisation's
-- ARGV    id, the record, how many there may be, how many of a person, the entry of the audit log and its MAC ("" for none)
-- Returns {1}, {0} where there are too many, {-1} where the person has too many; and what audit.write returned. O(log n).
if ARGV[5] ~= '' then
  audit.look(string.sub(KEYS[1], 1, -10))
end
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[3]) then
  return {0}
end
if KEYS[3] ~= KEYS[2] then
  if redis.call('ZCARD', KEYS[3]) >= tonumber(ARGV[4]) then
    return {-1}
  end
  redis.call('ZADD', KEYS[3], 0, ARGV[1])
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], 0, ARGV[1])
if ARGV[5] == '' then
  return {1, {}}
end
audit.add(ARGV[5], ARGV[6])
return {1, audit.write()}
