-- withdraw: host, actor, prefixes. Retracts what the host's jails claim on the prefixes, in whatever set; what it says of those
-- bans again is refused. ok: how many claims were retracted.
function ops.withdraw()
  local host, actor, blob = arg(), arg(), arg()
  local who, count = intern('h', host), 0
  for _, p in ipairs(each_prefix(blob)) do
    local c = cell(p)
    touch(c)
    local before = views(c.claims, true)
    local at, till, jails = now, 0, {}
    for i = #c.claims, 1, -1 do
      local claim = c.claims[i]
      if claim.source == JAIL and claim.host == who then
        drop(c, i)
        at, till = math.max(at, claim.since + 1), math.max(till, claim.expires)
        jails[claim.slot] = true
        if claim.set ~= 0 then load_set(claim.set) end
        count = count + 1
      end
    end
    if till > 0 then
      till = math.min(till, now + TOMB_MOST)
      for jail in pairs(jails) do
        tombstone(c, {source = TOMB_SOURCE, set = 0, host = who, slot = jail, since = at, expires = till})
      end
      c.dirty = true
      local after = views(c.claims, true)
      for no in pairs(before) do
        if not after[no] and kind_of(no) == BAN then
          note_retraction(c, no, at, till)
          tell('5', {'p', p, 'h', host, 'a', actor, 's', set_name(no)})
        end
      end
    end
  end
  return {'ok', count}
end
