-- events: policy, host, fence, spool, the last event of it that was stored for all the stream knows, promotions a minute of a host and of all (0: unlimited), packed events.
-- ok: through, promoted, skipped, refused, refused by the host's rate, by the rate of all.
--
-- An event is seq (6), kind (1), why it isn't promoted (1), age ms (6), duration ms (6, all ones: for ever), failures (4),
-- window ms (4), cap ms (6), cause of an unban (1), then jail, prefix and set, each after a byte of length.
local FOR_EVER = 281474976710655
local UNBAN_PERSON = 2
local marks = {} -- host → {spool, seq}: high-water marks, also of this batch's earlier mutations

local function mark_of(host)
  local m = marks[host]
  if not m then
    local spool, seq = string.match(call('HGET', key('hw'), host) or '', '^(.*) (%d+)$')
    m = {spool or '', tonumber(seq or '0')}
    marks[host] = m
  end
  return m
end

local function ends_at(since, duration, cap)
  local expires = duration == FOR_EVER and NEVER or math.min(since + duration, NEVER)
  if cap > 0 then expires = math.min(expires, now + cap) end
  return expires
end

-- Lifts the two-host rule where another host's claim began within the window. True when the claim counts.
local function seconded(c, claim, window)
  local counts = false
  for _, other in ipairs(c.claims) do
    if other.source == JAIL and other.host ~= claim.host and other.set == claim.set and (other.why == 0 or other.why == AWAITS)
      and math.abs(other.since - claim.since) <= window then
      counts = true
      if other.why == AWAITS and other.expires > now then other.why = 0 end
    end
  end
  return counts
end

local function observe_ban(e, host, count)
  local since = now - e.age
  local no = set_no(e.set)
  local expires = ends_at(since, e.duration, no ~= 0 and e.cap or 0)
  local who, jail = intern('h', host), intern('j', e.jail)
  local c = cell(e.p)
  touch(c)
  local fields = {'p', e.p, 'h', host, 'j', e.jail, 'e', num(expires)}
  if refused(c, no, since, who, jail) then
    count.refused = count.refused + 1
    fields[#fields + 1] = 'r'
    fields[#fields + 1] = 'began before it was unbanned'
    tell('1', fields)
    return
  end
  local why = e.why
  if no ~= 0 and (why == 0 or why == AWAITS) then
    if protected(e.p) then
      why = PROTECTED
    elseif covers(e.p, ALLOW_NO, false)[1] then
      why = ALLOWED
    end
  end
  local claim = {source = JAIL, set = no, why = why, host = who, slot = jail, since = since, expires = expires, failures = math.min(e.failures, 65535)}
  local was = no ~= 0 and views(c.claims, true)[no]
  local old, i = find(c, JAIL, who, jail)
  local counted = old and old.why == 0 and old.set ~= 0 and old.expires > now
  if counted and why == AWAITS and old.set == no then claim.why = 0 end
  -- What a host says again of a ban that counts (restored, found anew after its spool was lost) takes nothing from it.
  local stands = counted and (claim.why ~= 0 or old.set ~= no)
  if not stands and life(claim) > now then
    if old then drop(c, i) end
    if claim.why == AWAITS and seconded(c, claim, e.window) and expires > now then claim.why = 0 end
    if claim.why == 0 and no ~= 0 and expires > now then
      if not counted then count.promoted = count.promoted + 1 end
      local recovered, r = find(c, RECOVERED, nil, nil, no)
      if recovered and expires >= recovered.expires - 2000 then drop(c, r) end
      note_len(no, e.p)
    end
    c.claims[#c.claims + 1] = claim
    c.dirty = true
  end
  if claim.why ~= 0 then
    fields[#fields + 1] = 'u'
    fields[#fields + 1] = num(claim.why)
  end
  tell('1', fields)
  if no ~= 0 then
    load_set(no)
    local is = views(c.claims, true)[no]
    if is and not was then tell('4', {'p', e.p, 'h', host, 'j', e.jail, 'e', num(is.expires), 's', e.set}) end
  end
end

local function observe_extension(e, host)
  local who, jail = intern('h', host), intern('j', e.jail)
  local c = cell(e.p)
  touch(c)
  local claim = find(c, JAIL, who, jail)
  local expires = ends_at(claim and claim.since or now - e.age, e.duration, (claim and claim.set ~= 0) and e.cap or 0)
  if claim and claim.expires ~= expires then
    claim.expires = expires
    if claim.set ~= 0 then load_set(claim.set) end
    c.dirty = true
  end
  tell('2', {'p', e.p, 'h', host, 'j', e.jail, 'e', num(expires)})
end

local function observe_unban(e, host)
  local who, jail = intern('h', host), intern('j', e.jail)
  tell('3', {'p', e.p, 'h', host, 'j', e.jail})
  -- Run out, or its jail was stopped: no decision about the address. By command: the unban did it already.
  if e.cause ~= UNBAN_PERSON then return end
  local c = cell(e.p)
  touch(c)
  local before = views(c.claims, true)
  local claim, i = find(c, JAIL, who, jail)
  local at, till = now - e.age, 0
  local function retract(i)
    local gone = drop(c, i)
    at, till = math.max(at, gone.since + 1), math.max(till, gone.expires)
    if gone.set ~= 0 then load_set(gone.set) end
  end
  if claim then retract(i) end
  -- A recovered claim lost its source. It goes with the claim it was recovered from, or where this host has none left,
  -- when it began before this unban.
  for k = #c.claims, 1, -1 do
    local r = c.claims[k]
    if r.source == RECOVERED and kind_of(r.set) == BAN and ((claim and math.abs(r.since - claim.since) <= 2000) or (not claim and r.since <= at)) then
      retract(k)
    end
  end
  if till == 0 then return end
  tombstone(c, {source = TOMB_SOURCE, set = 0, host = who, slot = jail, since = at, expires = math.min(till, now + TOMB_MOST)})
  c.dirty = true
  local after = views(c.claims, true)
  for no in pairs(before) do
    if not after[no] and kind_of(no) == BAN then
      note_retraction(c, no, at, till)
      tell('5', {'p', e.p, 'h', host, 'j', e.jail, 's', set_name(no)})
    end
  end
end

-- GCRA: a rate's key holds when all that it granted is given back. That many may come at once as may come a minute.
local MINUTE = 60000
local given_back = {} -- rate → that time, also of this batch's earlier mutations

local function grant(name, at)
  if not given_back[name] then
    later[#later + 1] = function()
      call('SET', key(name), num(given_back[name]), 'PX', num(math.max(given_back[name] - now, 0) + 1000))
    end
  end
  given_back[name] = at
end

-- Takes one promotion of both rates, or of none; then it says which is used up.
local function exceeded(host, host_rate, all_rate)
  local host_at, all_at
  local function at(name, rate)
    return math.max(given_back[name] or tonumber(call('GET', key(name)) or '0'), now) + MINUTE / rate
  end
  if host_rate > 0 then
    host_at = at('rate:' .. host, host_rate)
    if host_at - now > MINUTE then return HOST_RATE end
  end
  if all_rate > 0 then
    all_at = at('rate', all_rate)
    if all_at - now > MINUTE then return ALL_RATE end
  end
  if host_at then grant('rate:' .. host, host_at) end
  if all_at then grant('rate', all_at) end
  return nil
end

function ops.events()
  local version, host, fence, spool = arg(), arg(), tonumber(arg()), arg()
  local after, host_rate, all_rate, blob = tonumber(arg()), tonumber(arg()), tonumber(arg()), arg()
  if tonumber(call('HGET', key('h:' .. host), 'fence') or '0') > fence then return {'err', 'fence'} end
  if stale_policy(version) then return {'err', 'policy'} end
  local mark = mark_of(host)
  local last = mark[1] == spool and mark[2] or 0
  if last < after then return {'err', 'rewound'} end -- what lies between was lost: with this event, nobody would send it again
  local count = {promoted = 0, refused = 0, skipped = 0, [HOST_RATE] = 0, [ALL_RATE] = 0}
  local pos, through = 1, last
  while pos <= #blob do
    local e = {}
    local lj, lp, ls
    e.seq, e.kind, e.why, e.age, e.duration, e.failures, e.window, e.cap, e.cause, pos = unpack_bytes('>I6BBI6I6I4I4I6B', blob, pos)
    lj = byte(blob, pos)
    e.jail = cut(blob, pos + 1, pos + lj)
    pos = pos + 1 + lj
    lp = byte(blob, pos)
    e.p = cut(blob, pos + 1, pos + lp)
    pos = pos + 1 + lp
    ls = byte(blob, pos)
    e.set = cut(blob, pos + 1, pos + ls)
    pos = pos + 1 + ls
    if e.seq <= through then
      count.skipped = count.skipped + 1
    else
      through = e.seq
      if e.kind == 1 then
        if e.set ~= '' and (e.why == 0 or e.why == AWAITS) then
          local why = exceeded(host, host_rate, all_rate)
          if why then
            count[why] = count[why] + 1
            e.set, e.why, e.window = '', why, 0
          end
        end
        observe_ban(e, host, count)
      elseif e.kind == 2 then
        observe_extension(e, host)
      else
        observe_unban(e, host)
      end
    end
  end
  if through > last or mark[1] ~= spool then
    marks[host] = {spool, through}
    later[#later + 1] = {'HSET', key('hw'), host, spool .. ' ' .. num(through)}
  end
  return {'ok', num(through), count.promoted, count.skipped, count.refused, count[HOST_RATE], count[ALL_RATE]}
end
