-- Takes one use of a join token for one public key.
-- KEYS[1] fb:{ORG}:join:ID   KEYS[2] fb:{ORG}:join:ID:used, the public keys that used it
-- ARGV    hash of the secret, public key
-- Returns {"unknown"}, or {"expired" | "used" | "taken" | "again", tags as JSON, ephemeral ms, host or "", created, expires,
-- uses, seal}. O(1).
local token = redis.call('HMGET', KEYS[1], 'hash', 'expires', 'left', 'tags', 'ephemeral', 'host', 'created', 'uses', 'seal')
if not token[1] or token[1] ~= ARGV[1] then
  return {'unknown'}
end
local function told(answer)
  return {answer, token[4], token[5] or '0', token[6] or '', token[7], token[2], token[8], token[9] or ''}
end
-- Also checked here, not by Redis' expiry alone: the key outlives the token, so that its holder hears what is wrong.
local time = redis.call('TIME')
if tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) >= tonumber(token[2]) then
  return told('expired')
end
if redis.call('SISMEMBER', KEYS[2], ARGV[2]) == 1 then
  return told('again')
end
if tonumber(token[3]) < 1 then
  return told('used')
end
redis.call('HINCRBY', KEYS[1], 'left', -1)
redis.call('SADD', KEYS[2], ARGV[2])
redis.call('PEXPIREAT', KEYS[2], redis.call('PEXPIRETIME', KEYS[1]))
return told('taken')
