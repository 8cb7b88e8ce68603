-- Applies a batch of mutations of one organisation: each whole or not at all, one version a set for all of them.
--
-- KEYS[1]  fb:{ORG}:meta
-- ARGV[1]  clock, ARGV[2] rebuild window (see prelude.lua)
-- ARGV[3]  how many mutations follow; each is what run.lua says, its name and a fixed number of arguments, see ops.
-- Returns  the head (see flush.lua), then a list of results: {'ok', …} or {'err', code, …} each.
-- Cost     O(prefixes · lengths in use); about 20 to 40 µs a prefix.
--
-- Prefixes come as one string: a byte of length, the packed prefix, and so on.
local at_arg = 3
local function arg()
  at_arg = at_arg + 1
  return ARGV[at_arg]
end

local function each_prefix(blob)
  local list, pos = {}, 1
  while pos <= #blob do
    local n = byte(blob, pos)
    list[#list + 1] = cut(blob, pos + 1, pos + n)
    pos = pos + 1 + n
  end
  return list
end

local function add_reason(fields, reason)
  if reason ~= '' then
    fields[#fields + 1] = 'r'
    fields[#fields + 1] = reason
  end
end

local function stale_policy(version) return version ~= '0' and version ~= policy end

-- What retracting left behind in a set: flush writes a RETRACTED record with it where the set has nothing more to say.
local function note_retraction(c, set, at, expires)
  local t = c.tombs[set]
  if t then
    t.since, t.expires = math.max(t.since, at), math.max(t.expires, expires)
  else
    if c.tombs == NOTHING then c.tombs = {} end
    c.tombs[set] = {since = at, expires = expires}
  end
end

local TOMB_LEAST = 600000 -- an unban refuses what is under way for ten minutes even where nothing stood
local TOMB_MOST = 400 * 86400000

local ops = {}

-- What the audit log tells of the change beside what was asked for: an op's result.found.
local function found(words, counts)
  local text = {}
  for i, n in ipairs(counts) do
    if n > 0 then text[#text + 1] = words[i] .. '=' .. num(n) end
  end
  return table.concat(text, ' ')
end

-- May an unban that is restricted to these (nil: it isn't) retract the claim? A jail's where it is its host's, others where
-- they are in a set of them.
local function retractable(claim, within)
  if claim.source >= TOMB_SOURCE or kind_of(claim.set) ~= BAN then return false end
  if not within then return true end
  if claim.source == JAIL then return claim.host ~= 0 and within['h' .. text_of('h', claim.host)] == true end
  return claim.set ~= 0 and within['s' .. set_name(claim.set)] == true
end

-- Adds a part of an order for each host whose jail claims, each once.
local function order_claimants(c, orders, part, within)
  local seen = {}
  for _, claim in ipairs(c.claims) do
    if claim.source == JAIL and claim.host ~= 0 and not seen[claim.host] and retractable(claim, within) then
      seen[claim.host] = true
      local host = text_of('h', claim.host)
      orders[host] = orders[host] or {}
      table.insert(orders[host], part)
    end
  end
end

-- ban: policy, set, actor, reason, duration (0: for ever), prefixes. Also allow, which is a claim in the set "allow".
-- ok: expires, then for each prefix its effect and what suppresses it.
function ops.ban()
  local version, name, actor, reason, duration, blob = arg(), arg(), arg(), arg(), tonumber(arg()), arg()
  if stale_policy(version) then return {'err', 'policy'} end
  local list = each_prefix(blob)
  local no = set_no(name)
  local s = load_set(no)
  if s.kind == BAN then
    for _, p in ipairs(list) do
      local by = protected(p)
      if by then return {'err', 'protected', p, by} end
    end
  end
  local expires = duration == 0 and NEVER or now + duration
  local who = intern('a', actor)
  local effects = {0, 0, 0, 0}
  local result = {'ok', expires}
  for _, p in ipairs(list) do
    local c = cell(p)
    touch(c)
    local was = views(c.claims, true)[no]
    local claim = find(c, PERSON, who, nil, no)
    local why = intern('r', reason)
    if why ~= 0 then ref[why] = ref[why] or 0 end
    if claim then
      if expires > claim.expires then
        claim.expires = expires
        if claim.slot ~= why then
          if claim.slot ~= 0 then ref[claim.slot] = (ref[claim.slot] or 0) - 1 end
          if why ~= 0 then ref[why] = ref[why] + 1 end
          claim.slot = why
        end
        c.dirty = true
      end
    else
      local since = now
      for _, t in ipairs(c.claims) do
        if t.source == TOMB and t.since > since then since = t.since end
      end
      if why ~= 0 then ref[why] = ref[why] + 1 end
      c.claims[#c.claims + 1] = {source = PERSON, set = no, why = 0, host = who, slot = why, since = since, expires = expires, failures = 0}
      c.dirty = true
      note_len(no, p)
    end
    local effect = 3
    if not was then effect = 1 elseif expires > was.expires then effect = 2 end
    local by = ''
    if s.kind == BAN then
      local cover = covers(p, ALLOW_NO, false)[1]
      if cover then effect, by = 4, cover[1] end
    end
    if effect ~= 3 then
      local fields = {'p', p, 'a', actor, 'e', num(expires), 's', name}
      add_reason(fields, reason)
      tell(s.kind == BAN and '4' or '6', fields)
    end
    result[#result + 1] = effect
    result[#result + 1] = by
    effects[effect] = effects[effect] + 1
  end
  result.found = found(s.kind == BAN and {'banned', 'extended', 'unchanged', 'suppressed'} or {'allowed', 'extended', 'unchanged', ''}, effects)
  return result
end

-- unban: actor, reason, prefixes, and what orders to the claiming hosts are made of (package commandlog): id, head, a part
-- a prefix, each after a byte of length; and what it is restricted to ("": to nothing): "s" and a set or "h" and a host, each
-- after a byte of length, the first a set.
-- ok: ids of hosts that were ordered, then for each prefix a list of retracted claims {packed, host or actor, jail or reason,
-- set} and one of covers {prefix, set, expires}.
function ops.unban()
  local actor, reason, blob, order, order_head, order_parts = arg(), arg(), arg(), arg(), arg(), each_prefix(arg())
  local who = intern('a', actor)
  local list, within = each_prefix(arg()), nil
  if #list > 0 then
    within = {}
    for _, w in ipairs(list) do within[w] = true end
  end
  local orders, ordered = {}, {}
  local retracted = 0
  local result = {'ok', ordered}
  load_lens()
  load_set(ALL_NO)
  for i, p in ipairs(each_prefix(blob)) do
    local c = cell(p)
    touch(c)
    order_claimants(c, orders, order_parts[i], within)
    local gone, at, till = {}, now, now + TOMB_LEAST
    for i = #c.claims, 1, -1 do
      local claim = c.claims[i]
      if retractable(claim, within) then
        at = math.max(at, claim.since + 1)
        till = math.max(till, claim.expires)
        local class = claim.source == PERSON and 'a' or 'h'
        gone[#gone + 1] = {pack_claim(claim), text_of(class, claim.host), text_of(class == 'a' and 'r' or 'j', claim.slot), set_name(claim.set), claim.set, claim.why}
      end
    end
    till = math.min(till, now + TOMB_MOST)
    local dropped = {}
    for i = #c.claims, 1, -1 do
      if retractable(c.claims[i], within) then dropped[#dropped + 1] = drop(c, i) end
    end
    if not within then
      tombstone(c, {source = TOMB, set = 0, host = who, slot = 0, since = at, expires = till})
    end
    for _, claim in ipairs(within and dropped or {}) do
      if claim.source == JAIL then
        tombstone(c, {source = TOMB_SOURCE, set = 0, host = claim.host, slot = claim.slot, since = at, expires = till})
      else
        tombstone(c, {source = TOMB, set = claim.set, host = who, slot = 0, since = at, expires = till})
      end
    end
    c.dirty = true
    for _, g in ipairs(gone) do
      if g[5] ~= 0 then
        load_set(g[5])
        if g[6] == 0 then note_retraction(c, g[5], at, till) end
      end
      g[5], g[6] = nil, nil
    end
    local cover = {}
    for no in pairs(lens) do
      if kind_of(no) == BAN then
        for _, w in ipairs(covers(p, no, true)) do cover[#cover + 1] = {w[1], set_name(no), w[3]} end
      end
    end
    if #gone > 0 then
      local fields = {'p', p, 'a', actor}
      add_reason(fields, reason)
      if within then
        fields[#fields + 1] = 's'
        fields[#fields + 1] = cut(list[1], 2)
      end
      tell('5', fields)
    end
    retracted = retracted + #gone
    result[#result + 1] = gone
    result[#result + 1] = cover
  end
  for host, parts in pairs(orders) do
    if commandable(BASE, host) then
      ordered[#ordered + 1] = host
      local command = order_head .. table.concat(parts)
      later[#later + 1] = function() append_command(BASE, host, order, command, true) end
    end
  end
  result.found = 'was.claims=' .. num(retracted) .. ' claims=0 ordered_hosts=' .. num(#ordered)
  return result
end

-- disallow: actor, prefixes. ok: for each prefix 1 where it was on the list.
function ops.disallow()
  local actor, blob = arg(), arg()
  local who = intern('a', actor)
  local result = {'ok'}
  load_set(ALLOW_NO)
  local removed = 0
  for _, p in ipairs(each_prefix(blob)) do
    local c = cell(p)
    touch(c)
    local at, till, gone = now, 0, 0
    for i = #c.claims, 1, -1 do
      local claim = c.claims[i]
      if claim.source < TOMB_SOURCE and claim.set == ALLOW_NO then
        at, till, gone = math.max(at, claim.since + 1), math.max(till, claim.expires), 1
        drop(c, i)
      end
    end
    if gone == 1 then
      till = math.min(till, now + TOMB_MOST)
      tombstone(c, {source = TOMB, set = ALLOW_NO, host = who, slot = 0, since = at, expires = till})
      note_retraction(c, ALLOW_NO, at, till)
      c.dirty = true
      tell('7', {'p', p, 'a', actor})
    end
    removed = removed + gone
    result[#result + 1] = gone
  end
  result.found = 'was.allowed=' .. num(removed) .. ' allowed=0'
  return result
end

-- addresses: host, prefixes (sorted by the caller, so that the same list is the same string).
function ops.addresses()
  local host, blob = arg(), arg()
  local no = intern('h', host)
  local was = call('HGET', key('addresses'), host) or ''
  load_set(HOSTS_NO)
  if was == blob then return {'ok'} end
  local wanted = {}
  for _, p in ipairs(each_prefix(blob)) do wanted[p] = true end
  for _, p in ipairs(each_prefix(was)) do
    if not wanted[p] then
      local c = cell(p)
      touch(c)
      local _, i = find(c, RULE, no, nil, HOSTS_NO)
      if i then
        local claim = drop(c, i)
        local at, till = math.max(now, claim.since + 1), now + 30 * 86400000
        note_retraction(c, HOSTS_NO, at, till)
        if not views(c.claims, true)[HOSTS_NO] then
          tombstone(c, {source = TOMB, set = HOSTS_NO, host = 0, slot = 0, since = at, expires = till})
        end
        c.dirty = true
      end
    end
  end
  for p in pairs(wanted) do
    local c = cell(p)
    touch(c)
    if not find(c, RULE, no, nil, HOSTS_NO) then
      local since = now
      for _, t in ipairs(c.claims) do
        if t.source == TOMB and t.since > since then since = t.since end
      end
      c.claims[#c.claims + 1] = {source = RULE, set = HOSTS_NO, why = 0, host = no, slot = 0, since = since, expires = NEVER, failures = 0}
      c.dirty = true
      note_len(HOSTS_NO, p)
    end
  end
  if blob == '' then
    later[#later + 1] = {'HDEL', key('addresses'), host}
  else
    later[#later + 1] = {'HSET', key('addresses'), host, blob}
  end
  return {'ok'}
end

-- close: ends the rebuild.
function ops.close()
  if rebuild_until > now then
    rebuild_until = 0
    later[#later + 1] = {'HSET', KEYS[1], 'rebuild_until', '0'}
    later[#later + 1] = {'SPUBLISH', key('bell'), 'epoch ' .. num(epoch)}
  end
  return {'ok'}
end

-- The tombstone of a person on the host that a record came from, who unbanned it; nil where nobody did. A host that hasn't heard of
-- it offers the record still; it ends when the claim was to end, or another one stood behind it.
local function unbanned_there(c, since, expires)
  for _, t in ipairs(c.claims) do
    if t.source == TOMB_SOURCE and since < t.since and expires <= t.expires + 2000 then return t end
  end
  return nil
end

local OFFERS_MOST = 900000 -- ms that offers can keep a rebuild open

-- What a tombstone's count of failures holds once it refused an offer: for which set hosts were told so last, and in which epoch. They
-- are told once then, however many of them offer what it refuses; snapshots of a rebuild name it anyway.
local function lift_mark(no) return (epoch + no * 31) % 65535 + 1 end

-- Has hosts lift what a tombstone refused, unless something else keeps it in the set: they hold it from before a loss, and take nothing
-- for lifted that is merely absent. The cell was touched.
local function lift(c, no, t, expires)
  local till = math.min(expires, now + TOMB_MOST)
  if t.source == TOMB and till > t.expires then
    t.expires = till -- a tombstone lives as long as what it cancels
    c.dirty = true
  end
  if t.failures ~= lift_mark(no) and not views(c.claims, true)[no] then
    t.failures = lift_mark(no)
    c.lifts = c.lifts or {}
    c.lifts[no] = t
    c.dirty = true
  end
end

-- offer: set, packed records (as in the log). ok: how many were taken. While some are, the rebuild stays open: a million takes
-- longer than its window. What a tombstone refuses is answered with a RETRACTED record in the log, for all who hold it.
function ops.offer()
  local name, blob = arg(), arg()
  if rebuild_until <= now then return {'err', 'closed'} end
  local no = set_no(name)
  local s = load_set(no)
  local present, taken, pos = {}, 0, 1
  while pos <= #blob do
    local n = byte(blob, pos)
    local p = cut(blob, pos + 1, pos + n)
    local kind, since, expires, after = unpack_bytes('>BI6I6', blob, pos + 1 + n)
    pos = after
    if expires > now and kind == PRESENT then
      present[#present + 1] = {p, since, expires}
    elseif expires > now and kind == RETRACTED then
      expires = math.min(expires, now + TOMB_MOST)
      local c = cell(p)
      touch(c)
      if not refused(c, no, since) then
        for i = #c.claims, 1, -1 do
          local claim = c.claims[i]
          if claim.source < TOMB_SOURCE and claim.set == no and claim.since < since then
            drop(c, i)
            note_retraction(c, no, since, expires)
          end
        end
        tombstone(c, {source = TOMB, set = no, host = 0, slot = 0, since = since, expires = expires})
        c.dirty = true
        taken = taken + 1
      end
    end
  end
  for _, r in ipairs(present) do
    local p, since, expires = r[1], r[2], r[3]
    -- Hosts say their own addresses again when they connect: what is recovered only bridges the time until then.
    if s.kind == PROTECT then expires = math.min(expires, now + 86400000) end
    local c = cell(p)
    touch(c)
    local was = views(c.claims, true)[no]
    local by = refused(c, no, since) or s.kind == BAN and unbanned_there(c, since, expires)
    if by then
      lift(c, no, by, expires)
    elseif not was or was.expires < expires then
      local claim = find(c, RECOVERED, nil, nil, no)
      if claim then
        claim.since, claim.expires = math.min(claim.since, since), math.max(claim.expires, expires)
      else
        c.claims[#c.claims + 1] = {source = RECOVERED, set = no, why = 0, host = 0, slot = 0, since = since, expires = expires, failures = 0}
      end
      c.dirty = true
      note_len(no, p)
      taken = taken + 1
    end
  end
  local open = math.min(now + tonumber(ARGV[2]) / 2, began + OFFERS_MOST)
  if taken > 0 and open > rebuild_until then
    rebuild_until = math.floor(open)
    later[#later + 1] = {'HSET', KEYS[1], 'rebuild_until', num(rebuild_until)}
  end
  return {'ok', taken}
end
