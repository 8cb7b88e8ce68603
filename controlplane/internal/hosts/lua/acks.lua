-- Stores acknowledgements of many streams.
-- KEYS[1] fb:{ORG}:hosts
-- ARGV    for each: id, fence, inert or "-" (not said), exceptions (an Ack, binary; "" is none) or "-" (as before),
--         number of cursors, then set and "epoch version digest" for each
-- Returns the ids whose fence is stale. O(cursors).
local stale, i, stored = {}, 1, false
while i <= #ARGV do
  local id, fence, inert, exceptions, n = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], tonumber(ARGV[i + 4])
  i = i + 5
  if fence_of(id) == fence then
    stored = true
    for c = 0, n - 1 do
      redis.call('HSET', key('acks:' .. ARGV[i + 2 * c]), id, ARGV[i + 2 * c + 1])
    end
    if inert == '0' then
      redis.call('HDEL', key('inert'), id)
    elseif inert ~= '-' then
      redis.call('HSET', key('inert'), id, inert)
    end
    if exceptions == '' then
      redis.call('HDEL', key('exceptions'), id)
    elseif exceptions ~= '-' then
      redis.call('HSET', key('exceptions'), id, exceptions)
    end
  else
    stale[#stale + 1] = id
  end
  i = i + 2 * n
end
if stored then
  ring('acks *')
end
return stale
