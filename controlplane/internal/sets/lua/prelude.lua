-- Shared by every script of package sets: clock, epoch, names, cells, views. Nothing here writes but begin_epoch.
--
-- KEYS[1] fb:{ORG}:meta. The other keys are of the same organisation and so of the same slot; which ones a script
--         touches follows from what it reads, so they can't be named beforehand.
-- ARGV[1] the clock, Unix milliseconds: 0 for the server's own; tests give another.
-- ARGV[2] milliseconds that a rebuild stays open.
--
-- Numbers: Lua's are doubles. Times stay below 2^48 and everything else below 2^53. `..` writes 14 digits only: whole
-- numbers become text through num().
local BASE = string.sub(KEYS[1], 1, -5)
local NEVER = 253402300799000
local BAN, ALLOW, PROTECT = 1, 2, 3 -- kinds of sets
local PRESENT, RETRACTED, EXPIRED = 1, 2, 3 -- kinds of records
local JAIL, PERSON, RULE, RECOVERED = 1, 2, 3, 5 -- sources of claims
local TOMB_SOURCE, TOMB = 14, 15 -- tombstones stand among the claims
local AWAITS, PROTECTED, HOST_RATE, ALL_RATE, ALLOWED = 3, 7, 8, 9, 11 -- why a claim doesn't count
local WINDOW = 600000 -- how long a claim that awaits a second host is remembered at least
local ALL_NO, ALLOW_NO, HOSTS_NO = 1, 2, 3 -- numbers of the sets that always exist
local CLAIM = '>BI2BI3I4I6I6I2' -- source, set, why, host or actor, jail or reason, since, expires, failures
local CLAIM_LEN = 25
local LOG_LEN = 16384
local LOG_RECORDS = 200000
local EVENTS_LEN = '10000'
local RING_MOST = 16384

-- What runs for each prefix takes the short ways: locals for globals, and no number as an argument of a command, for Redis
-- writes those out with 17 digits.
local call, byte, cut, sha1hex, pack, unpack_bytes = redis.call, string.byte, string.sub, redis.sha1hex, struct.pack, struct.unpack

local function key(name) return BASE .. name end

-- The same few numbers come for every prefix of a batch.
local num_texts = {}
local function num(n)
  local text = num_texts[n]
  if not text then
    text = string.format('%.0f', n)
    num_texts[n] = text
  end
  return text
end

-- Clock: never back, whatever the machine's does.
local meta = call('HMGET', KEYS[1], 'runid', 'epoch', 'clock', 'rebuild_until', 'policy', 'old_epoch', 'fresh', 'replid', 'began')
local time = call('TIME')
local now = tonumber(ARGV[1])
if now == 0 then now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) end
local clock = tonumber(meta[3] or '0')
local still = now <= clock -- or was set back
now = math.max(now, clock)
local epoch = tonumber(meta[2] or '0')
local old_epoch = tonumber(meta[6] or '0')
local began = tonumber(meta[9] or meta[2] or '0') -- when the epoch did
local rebuild_until = tonumber(meta[4] or '0')
local policy = meta[5] or '0'

-- A run id that isn't the stored one: Redis was restarted, failed over, restored or emptied, and may have lost what it
-- acknowledged. So it may have under the same run id, where another replication id shows that the server was promoted: it was
-- the master, followed another one, lost with that what it had not heard of yet or had alone, and is the master again.
-- (A server also takes a new one for its first replica. That costs an epoch, and nothing else.)
--
-- Every set notes the version it has now: what hosts hold above that under an older epoch was lost.
--
-- Two servers that both take themselves for the master begin an epoch after the same one, and at the same time where the clock stands
-- still. Their epochs differ by something of their ids, or what follows would pass for one history. An epoch counts 1,024 a
-- millisecond, and where the clock goes on no more than that comes of the ids: it is above the one before though Redis lost all.
local function begin_epoch(runid, replid)
  old_epoch = epoch
  epoch = math.max(now * 1024, old_epoch + 1) + tonumber(cut(sha1hex(runid .. replid), 1, 4), 16) % (still and 65536 or 1024)
  began = now
  -- There is nothing to gather for an organisation that was just made.
  rebuild_until = meta[7] and 0 or now + tonumber(ARGV[2])
  if meta[7] then call('HDEL', KEYS[1], 'fresh') end
  local names = call('HKEYS', key('sets'))
  for _, name in ipairs(names) do
    local set = call('HMGET', key('set:' .. name), 'v', 'rw')
    local rewinds = {num(epoch) .. ':' .. (set[1] or '0')}
    for rewind in string.gmatch(set[2] or '', '[^,]+') do
      if #rewinds < 8 then rewinds[#rewinds + 1] = rewind end
    end
    call('HSET', key('set:' .. name), 'rw', table.concat(rewinds, ','))
  end
  call('HSET', KEYS[1], 'runid', runid, 'replid', replid, 'epoch', num(epoch), 'old_epoch', num(old_epoch), 'began', num(began), 'rebuild_until', num(rebuild_until), 'clock', num(now))
  if old_epoch > 0 then
    call('XADD', key('events'), 'MAXLEN', '~', EVENTS_LEN, '*', 't', num(now), 'k', '16', 'r',
      'Redis was restarted or failed over: what hosts hold is compared with what it kept')
  end
  call('SPUBLISH', key('bell'), 'epoch ' .. num(epoch))
end

local runid
do
  runid = string.match(call('INFO', 'server'), 'run_id:(%x+)') or ''
  local replid = string.match(call('INFO', 'replication'), 'master_replid:(%x+)') or ''
  if meta[1] ~= runid or (meta[8] and meta[8] ~= replid) then
    begin_epoch(runid, replid)
  elseif not meta[8] then -- an earlier release kept none
    call('HSET', KEYS[1], 'replid', replid)
  end
end

-- Names: hosts (h), jails (j), actors (a), reasons (r) and sets (s) are numbers inside claims. New ones are written by flush.
local interned, texts, fresh_names, next_name = {}, {}, {}, {}
local ref = {} -- reason → change of how many claims use it

local function intern(class, text)
  if text == '' then return 0 end
  local field = class .. text
  local n = interned[field]
  if n then return n end
  n = tonumber(call('HGET', key('names'), field) or nil)
  if not n then
    n = next_name[class] or tonumber(call('HGET', key('names'), '#' .. class) or '16')
    next_name[class] = n + 1
    fresh_names[#fresh_names + 1] = {class, n, text}
  end
  interned[field] = n
  texts[string.upper(class) .. n] = text
  return n
end

local function text_of(class, n)
  if n == 0 then return '' end
  local field = string.upper(class) .. num(n)
  local text = texts[field]
  if not text then
    text = call('HGET', key('names'), field) or ''
    texts[field] = text
  end
  return text
end

local function kind_of(no)
  if no == ALLOW_NO then return ALLOW elseif no == HOSTS_NO then return PROTECT end
  return BAN
end

local function set_name(no)
  if no == ALL_NO then return 'all' elseif no == ALLOW_NO then return 'allow' elseif no == HOSTS_NO then return 'hosts' end
  return text_of('s', no)
end

local function set_no(name)
  if name == '' then return 0 elseif name == 'all' then return ALL_NO elseif name == 'allow' then return ALLOW_NO elseif name == 'hosts' then return HOSTS_NO end
  return intern('s', name)
end

-- A set's state, loaded once a script.
local sets, set_order = {}, {}
local function load_set(no)
  local s = sets[no]
  if s then return s end
  local name = set_name(no)
  local f = call('HMGET', key('set:' .. name), 'v', 'd', 'n', 'rc')
  local d = f[2] or '0000000000000000'
  s = {no = no, name = name, kind = kind_of(no), v = tonumber(f[1] or '0'), d1 = tonumber(cut(d, 1, 8), 16), d2 = tonumber(cut(d, 9), 16),
    n = tonumber(f[3] or '0'), rc = tonumber(f[4] or '0'), records = {}}
  sets[no] = s
  set_order[#set_order + 1] = s
  return s
end

local function digest_of(s) return bit.tohex(s.d1) .. bit.tohex(s.d2) end

-- Claims of one prefix.
local function parse(value)
  local claims = {}
  if not value then return claims end
  local pos = 1
  while pos + CLAIM_LEN - 1 <= #value do
    local source, set, why, host, slot, since, expires, failures, after = unpack_bytes(CLAIM, value, pos)
    claims[#claims + 1] = {source = source, set = set, why = why, host = host, slot = slot, since = since, expires = expires, failures = failures}
    pos = after
  end
  return claims
end

local function pack_claim(c)
  return pack(CLAIM, c.source, c.set, c.why, c.host, c.slot, c.since, c.expires, c.failures)
end

-- The view: set number → {since, expires}. With `live`, of claims that haven't run out; else of all that stand, which
-- is what the log and the digest say. A view begins no earlier than the tombstones it outlived, or a rebuild would drop it.
local NOTHING = {} -- never written to
local function views(claims, live)
  local v, buried = NOTHING, false
  for i = 1, #claims do
    local c = claims[i]
    if c.source >= TOMB_SOURCE then
      buried = true
    elseif c.set ~= 0 and c.why == 0 and (not live or c.expires > now) then
      if v == NOTHING then v = {} end
      local w = v[c.set]
      if not w then
        v[c.set] = {since = c.since, expires = c.expires}
      else
        if c.since < w.since then w.since = c.since end
        if c.expires > w.expires then w.expires = c.expires end
      end
    end
  end
  if buried and v ~= NOTHING then
    for _, c in ipairs(claims) do
      if c.source >= TOMB_SOURCE then
        for no, w in pairs(v) do
          if (c.set == no or (c.set == 0 and kind_of(no) == BAN)) and w.since < c.since then w.since = c.since end
        end
      end
    end
  end
  return v
end

local cells, cell_order = {}, {}
local function make_cell(p, bucket, value)
  local c = {p = p, bucket = bucket, key = BASE .. 'c:' .. bucket, claims = parse(value), tombs = NOTHING}
  cells[p] = c
  cell_order[#cell_order + 1] = c
  return c
end

local function cell(p)
  local c = cells[p]
  if c then return c end
  local bucket = string.format('%d', tonumber(cut(sha1hex(p), 1, 3), 16))
  c = make_cell(p, bucket, nil)
  local value = call('HGET', c.key, p)
  if value then c.claims = parse(value) end
  return c
end

-- When a claim may be forgotten.
local function life(c)
  if c.why == AWAITS and c.since + WINDOW > c.expires then return c.since + WINDOW end
  return c.expires
end

local function drop(c, i)
  local claim = table.remove(c.claims, i)
  if claim.source == PERSON and claim.slot ~= 0 then ref[claim.slot] = (ref[claim.slot] or 0) - 1 end
  return claim
end

-- Before a cell's first change: remember what the log says of it, and forget what ran out.
local function touch(c)
  if c.before then return end
  c.before = views(c.claims, false)
  for i = #c.claims, 1, -1 do
    if life(c.claims[i]) <= now then
      drop(c, i)
      c.dirty = true
    end
  end
end

local function find(c, source, host, slot, set)
  local claims = c.claims
  for i = 1, #claims do
    local claim = claims[i]
    if claim.source == source and (host == nil or claim.host == host) and (slot == nil or claim.slot == slot) and (set == nil or claim.set == set) then
      return claim, i
    end
  end
end

local function tombstone(c, t)
  for _, claim in ipairs(c.claims) do
    if claim.source == t.source and claim.set == t.set and (t.source == TOMB or (claim.host == t.host and claim.slot == t.slot)) then
      if t.since > claim.since or t.expires > claim.expires then claim.failures = 0 end -- to be told anew: see lift in apply.lua
      claim.since = math.max(claim.since, t.since)
      claim.expires = math.max(claim.expires, t.expires)
      claim.host = t.host
      return
    end
  end
  t.why, t.failures = 0, 0
  c.claims[#c.claims + 1] = t
end

-- The tombstone that refuses a claim in this set (0: an observation) that began then, of this host's jail; nil where none does.
local function refused(c, set, since, host, slot)
  for _, t in ipairs(c.claims) do
    if t.source == TOMB and since < t.since and (t.set == set or (t.set == 0 and kind_of(set) == BAN)) then return t end
    if t.source == TOMB_SOURCE and since < t.since and t.host == host and t.slot == slot then return t end
  end
  return nil
end

-- Lengths in use in each set: where to look for what covers a prefix. Set → bytes of address → lengths, longest first.
local lens
local function add_len(no, bytes, len)
  lens[no] = lens[no] or {}
  local list = lens[no][bytes]
  if not list then
    list = {}
    lens[no][bytes] = list
  end
  local at = 1
  while list[at] and list[at] > len do at = at + 1 end
  if list[at] ~= len then table.insert(list, at, len) end
end

local function load_lens()
  if lens then return end
  lens = {}
  for _, field in ipairs(call('HKEYS', key('lens'))) do
    local no, bytes, len = string.match(field, '^(%d+):(%d+):(%d+)$')
    if no then add_len(tonumber(no), tonumber(bytes), tonumber(len)) end
  end
end

local function note_len(no, p)
  load_lens()
  add_len(no, #p - 1, byte(p, -1))
end

local function mask(p, len)
  local whole, rest = math.floor(len / 8), len % 8
  local out = cut(p, 1, whole)
  if rest > 0 then
    local b = byte(p, whole + 1)
    out = out .. string.char(b - b % (2 ^ (8 - rest)))
  end
  return out .. string.rep('\0', #p - 1 - #out) .. string.char(len)
end

-- The live prefixes of a set that cover p; wider ones only where strict. Narrowest first.
local function covers(p, no, strict)
  load_lens()
  local by_len = lens[no] and lens[no][#p - 1]
  if not by_len then return NOTHING end
  local found, most = NOTHING, byte(p, -1)
  if strict then most = most - 1 end
  for i = 1, #by_len do
    if by_len[i] <= most then
      local q = mask(p, by_len[i])
      local w = views(cell(q).claims, true)[no]
      if w then
        if found == NOTHING then found = {} end
        found[#found + 1] = {q, no, w.expires}
      end
    end
  end
  return found
end

-- Sorts IPv4 before IPv6 and each by address.
local function index_member(p) return (#p == 5 and '4' or '6') .. p end

-- What of the fleet's own a prefix overlaps.
local function protected(p)
  local outer = covers(p, HOSTS_NO, false)[1]
  if outer then return outer[1] end
  local len, bytes = byte(p, -1), #p - 1
  if len == bytes * 8 then return nil end
  local whole, rest = math.floor(len / 8), len % 8
  local last = cut(p, 1, whole)
  if rest > 0 then last = last .. string.char(byte(p, whole + 1) + 2 ^ (8 - rest) - 1) end
  last = last .. string.rep('\255', bytes - #last)
  local family = bytes == 4 and '4' or '6'
  local inner = call('ZRANGEBYLEX', key('idx:hosts'), '[' .. family .. cut(p, 1, -2), '[' .. family .. last .. '\255', 'LIMIT', 0, 1)[1]
  return inner and cut(inner, 2)
end

-- Events for people, written by flush.
local people = {}
local function tell(kind, fields)
  fields[#fields + 1] = 'k'
  fields[#fields + 1] = kind
  people[#people + 1] = fields
end
