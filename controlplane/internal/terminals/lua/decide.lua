-- Puts the next state of a sign-in in the place of the one that was read, or takes it away: of many at once, one does.
-- KEYS[1] fb:terminal:HASH
-- ARGV    what was read, what it becomes; "": it goes
-- Returns 1, or 0 where it is another one by now, or gone. O(1).
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
end
return 1
