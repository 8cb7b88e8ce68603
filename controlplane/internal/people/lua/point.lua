-- Makes an address lead to another person, or to nobody, if it leads to whom it did.
-- KEYS[1] fb:email:HASH
-- ARGV    person that it leads to ("": nobody), the new one or ""
-- Returns 1 or 0. O(1).
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then
  return 0
end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[2])
end
return 1
