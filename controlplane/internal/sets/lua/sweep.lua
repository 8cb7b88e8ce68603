-- Drops claims that ran out and emits the EXPIRED records of views that did.
--
-- KEYS[1]  fb:{ORG}:meta; ARGV[1], ARGV[2] as in prelude.lua.
-- ARGV[3]  most prefixes to change, ARGV[4] most prefixes to look at (a bucket that was begun is finished).
-- Returns  the head (see flush.lua), prefixes changed, 1 when work is left, when the next is due (0: nothing is).
-- Cost     O(prefixes looked at), about 2 µs each, and 20 µs for each one changed.
local changed, looked, more = 0, 0, 0
for _, bucket in ipairs(call('ZRANGEBYSCORE', key('due'), '-inf', num(now), 'LIMIT', 0, 256)) do
  if changed >= tonumber(ARGV[3]) or looked >= tonumber(ARGV[4]) then
    more = 1
    break
  end
  local earliest
  local all = call('HGETALL', BASE .. 'c:' .. bucket)
  for i = 1, #all, 2 do
    looked = looked + 1
    local value, dead, ends = all[i + 1], false, nil
    for pos = 1, #value - CLAIM_LEN + 1, CLAIM_LEN do
      local since, expires = unpack_bytes('>I6I6', value, pos + 11)
      if byte(value, pos + 3) == AWAITS and since + WINDOW > expires then expires = since + WINDOW end
      if expires <= now then
        dead = true
      elseif not ends or expires < ends then
        ends = expires
      end
    end
    if dead then
      local c = make_cell(all[i], bucket, value)
      touch(c)
      c.swept = true
      changed = changed + 1
    end
    if ends and (not earliest or ends < earliest) then earliest = ends end
  end
  if earliest and earliest < NEVER then
    later[#later + 1] = {'ZADD', key('due'), num(earliest), bucket}
  else
    later[#later + 1] = {'ZREM', key('due'), bucket}
  end
end
flush()
local reply = head()
local first = call('ZRANGE', key('due'), 0, 0, 'WITHSCORES')
reply[#reply + 1] = changed
reply[#reply + 1] = (more == 1 or (first[2] and tonumber(first[2]) <= now)) and 1 or 0
reply[#reply + 1] = first[2] and num(tonumber(first[2])) or '0'
return reply
