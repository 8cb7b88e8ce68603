-- Tells where every set of the organisation stands; begins a new epoch where Redis was restarted.
--
-- KEYS[1]  fb:{ORG}:meta; ARGV[1], ARGV[2] as in prelude.lua.
-- Returns  the head (see flush.lua) with every set, then a list of each set's rewinds in the same order.
-- Cost     O(sets).
local rewinds = {}
for _, name in ipairs(call('HKEYS', key('sets'))) do
  load_set(set_no(name))
  rewinds[#rewinds + 1] = call('HGET', key('set:' .. name), 'rw') or ''
end
local reply = head()
reply[#reply + 1] = rewinds
return reply
