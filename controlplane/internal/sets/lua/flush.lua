-- Writes what was staged: views before and after, records, versions, logs, names, indexes, events, doorbell.
--
-- Redis undoes nothing when a script fails in the middle. So everything is computed first, then every key that will be
-- written is looked at (a look at one of a wrong type fails), and from there on nothing may fail.

local writes = {} -- of the buckets
local later = {} -- commands to run as they are, and functions to call
local due = {} -- bucket → earliest end of a claim written to it
local index_add, index_remove = {}, {} -- index → members, and a 0 before each that is added: one command for many

-- Calls a command for many arguments, some hundred at a time: Lua's stack has an end. `step` arguments belong together.
local function in_pieces(command, key, options, args, step)
  local most = 400 - 400 % step
  for first = 1, #args, most do
    local piece = {command, key}
    for _, option in ipairs(options) do piece[#piece + 1] = option end
    for i = first, math.min(first + most - 1, #args) do piece[#piece + 1] = args[i] end
    call(unpack(piece))
  end
end

local function note_index(index, s, ...)
  if s.kind == BAN then return end
  local name = 'idx:' .. s.name
  local members = index[name] or {}
  index[name] = members
  for i = 1, select('#', ...) do members[#members + 1] = select(i, ...) end
end

local function hash_into(s, p, expires)
  local h = sha1hex(p .. pack('>I8', expires))
  s.d1 = bit.bxor(s.d1, tonumber(cut(h, 1, 8), 16))
  s.d2 = bit.bxor(s.d2, tonumber(cut(h, 9, 16), 16))
end

-- len_change: set, bytes of address and prefix length in one number → how many records more.
local function note_len_change(len_change, no, p, by)
  local at = (no * 256 + #p - 1) * 256 + byte(p, -1)
  len_change[at] = (len_change[at] or 0) + by
end

local function flush_cell(c, len_change)
  local parts = {}
  local after = views(c.claims, false)
  for no, was in pairs(c.before) do
    local is = after[no]
    local s = load_set(no)
    local record
    if is then
      if is.expires ~= was.expires then
        hash_into(s, c.p, was.expires)
        hash_into(s, c.p, is.expires)
        record = pack('>BI6I6', PRESENT, is.since, is.expires)
      end
    else
      hash_into(s, c.p, was.expires)
      s.n = s.n - 1
      local t = c.tombs[no]
      if t and was.expires > now then
        record = pack('>BI6I6', RETRACTED, t.since, t.expires)
      else
        record = pack('>BI6I6', EXPIRED, was.since, was.expires)
      end
      note_len_change(len_change, no, c.p, -1)
      note_index(index_remove, s, index_member(c.p))
    end
    if record then s.records[#s.records + 1] = string.char(#c.p) .. c.p .. record end
  end
  for no, is in pairs(after) do
    if not c.before[no] then
      local s = load_set(no)
      hash_into(s, c.p, is.expires)
      s.n = s.n + 1
      s.records[#s.records + 1] = string.char(#c.p) .. c.p .. pack('>BI6I6', PRESENT, is.since, is.expires)
      note_len_change(len_change, no, c.p, 1)
      note_index(index_add, s, 0, index_member(c.p))
    end
  end
  for no, t in pairs(c.lifts or NOTHING) do
    if not c.before[no] and not after[no] then
      local s = load_set(no)
      s.records[#s.records + 1] = string.char(#c.p) .. c.p .. pack('>BI6I6', RETRACTED, t.since, t.expires)
    end
  end
  local earliest
  for i = 1, #c.claims do
    local claim = c.claims[i]
    parts[i] = pack_claim(claim)
    local ends = life(claim)
    if not earliest or ends < earliest then earliest = ends end
  end
  if #parts == 0 then
    writes[#writes + 1] = {'HDEL', c.key, c.p}
  else
    writes[#writes + 1] = {'HSET', c.key, c.p, table.concat(parts)}
    if not c.swept and earliest < NEVER and earliest < (due[c.bucket] or NEVER) then due[c.bucket] = earliest end
  end
end

local function flush_set(s)
  s.v = s.v + 1
  s.rc = s.rc + #s.records
  local digest, blob = digest_of(s), table.concat(s.records)
  local state = key('set:' .. s.name)
  if s.v == 1 or call('HEXISTS', key('sets'), s.name) == 0 then call('HSET', key('sets'), s.name, num(s.kind)) end
  call('HSET', state, 'v', num(s.v), 'd', digest, 'n', num(s.n), 'rc', num(s.rc))
  if s.v == 1 then call('HSET', state, 'rw', num(epoch) .. ':0') end
  local log = key('log:' .. s.name)
  call('XADD', log, 'MAXLEN', '~', LOG_LEN, num(s.v) .. '-0', 'd', digest, 'c', num(s.rc), 'r', blob)
  -- The log is bounded by entries above and by records here.
  if s.v % 64 == 0 then
    local oldest = call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
    if oldest and s.rc - tonumber(oldest[2][4]) > LOG_RECORDS then
      call('XTRIM', log, 'MAXLEN', math.floor(call('XLEN', log) / 2))
    end
  end
  if #blob > RING_MOST then blob = '' end
  call('SPUBLISH', key('bell'), 'delta ' .. s.name .. ' ' .. s.kind .. ' ' .. num(epoch) .. ' ' .. num(s.v) .. ' ' .. digest .. '\n' .. blob)
end

local function flush_names()
  for _, name in ipairs(fresh_names) do
    call('HSET', key('names'), name[1] .. name[3], num(name[2]), string.upper(name[1]) .. num(name[2]), name[3])
  end
  for class, n in pairs(next_name) do call('HSET', key('names'), '#' .. class, num(n)) end
  -- A reason is forgotten with the last claim that gives it.
  for n, change in pairs(ref) do
    if call('HINCRBY', key('refs'), num(n), num(change)) <= 0 then
      call('HDEL', key('refs'), num(n))
      call('HDEL', key('names'), 'r' .. text_of('r', n), 'R' .. num(n))
    end
  end
end

-- Fails, while nothing is written, where a write would.
local function look()
  for name, command in pairs({due = 'ZCARD', lens = 'HLEN', names = 'HLEN', refs = 'HLEN', sets = 'HLEN', events = 'XLEN'}) do
    call(command, key(name))
  end
  for _, index in ipairs({index_add, index_remove}) do
    for name in pairs(index) do call('ZCARD', key(name)) end
  end
  for _, s in ipairs(set_order) do
    if #s.records > 0 then
      local last = call('XREVRANGE', key('log:' .. s.name), '+', '-', 'COUNT', 1)[1]
      if last and tonumber(string.match(last[1], '^%d+')) > s.v then
        error('the log of set ' .. s.name .. ' is ahead of its state: entry ' .. last[1] .. ' at version ' .. num(s.v))
      end
    end
  end
end

local function flush()
  local wrote = false
  local len_change = {}
  for _, c in ipairs(cell_order) do
    if c.dirty then
      wrote = true
      flush_cell(c, len_change)
    end
  end
  if wrote or #later > 0 then look() end
  if #audit.entries > 0 then audit.look(BASE, runid) end
  for _, command in ipairs(writes) do call(unpack(command)) end
  for _, command in ipairs(later) do
    wrote = true
    if type(command) == 'function' then command() else call(unpack(command)) end
  end
  for name, members in pairs(index_remove) do in_pieces('ZREM', key(name), {}, members, 1) end
  for name, members in pairs(index_add) do in_pieces('ZADD', key(name), {}, members, 2) end
  local ends = {}
  for bucket, at in pairs(due) do
    ends[#ends + 1] = num(at)
    ends[#ends + 1] = bucket
  end
  in_pieces('ZADD', key('due'), {'LT'}, ends, 2)
  for at, change in pairs(len_change) do
    local len, bytes = at % 256, math.floor(at / 256) % 256
    local field = num(math.floor(at / 65536)) .. ':' .. bytes .. ':' .. len
    if change ~= 0 and call('HINCRBY', key('lens'), field, num(change)) <= 0 then call('HDEL', key('lens'), field) end
  end
  flush_names()
  for _, s in ipairs(set_order) do
    if #s.records > 0 then flush_set(s) end
  end
  if #people > 0 then
    wrote = true
    local stream, at = key('events'), num(now)
    for i = 1, #people - 1 do call('XADD', stream, '*', 't', at, unpack(people[i])) end
    call('XADD', stream, 'MAXLEN', '~', EVENTS_LEN, '*', 't', at, unpack(people[#people]))
    call('SPUBLISH', key('bell'), 'events')
  end
  if #audit.entries > 0 then audit.reply = audit.write() end
  if wrote then call('HSET', KEYS[1], 'clock', num(now)) end
end

-- What every reply begins with: clock, epoch, old epoch, end of the rebuild, policy, then the sets that were looked at,
-- five values each: name, kind, version, digest, records.
local function head()
  local states = {}
  for _, s in ipairs(set_order) do
    states[#states + 1] = s.name
    states[#states + 1] = s.kind
    states[#states + 1] = num(s.v)
    states[#states + 1] = digest_of(s)
    states[#states + 1] = num(s.n)
  end
  return {now, epoch, old_epoch, rebuild_until > now and rebuild_until or 0, policy, states}
end
