-- Shared by every script that writes to an organisation's audit log. look() first, before anything is written: it fails
-- where write() would. Then add() for each entry, and write() at the end.
--
-- fb:{ORG}:audit      stream  N-0 → t (ms), x (what the script found, "name=value …"), m (MAC of b), b (the entry), h (hash)
-- fb:{ORG}:auditmeta  hash    n, h, t: of the newest entry; runid: of the server that wrote it; bn, bh: the newest dropped
--                             entry; sn, sh, sm: an entry that was sealed and the seal
-- fb:{ORG}:auditopen  hash    id → number of what was begun and hasn't ended
--
-- An entry's hash is SHA-1 over the hash before it, its number, time and x, and its MAC: the MAC, which only the control
-- plane can make, stands for what it says, and the entries after it say in theirs which hash they knew.
local audit = {entries = {}}

function audit.look(base, runid)
  audit.base = base
  audit.runid = runid or string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or ''
  local f = redis.call('HMGET', base .. 'auditmeta', 'n', 'h', 't', 'runid')
  audit.n, audit.h, audit.t, audit.was = tonumber(f[1] or '0'), f[2] or string.rep('0', 40), tonumber(f[3] or '0'), f[4]
  redis.call('HLEN', base .. 'auditopen')
  local last = redis.call('XREVRANGE', base .. 'audit', '+', '-', 'COUNT', 1)[1]
  if last then
    local n, fields = tonumber(string.match(last[1], '^%d+')), {}
    if n > audit.n then
      -- The head was lost or put back: go on after what there is.
      for i = 1, #last[2], 2 do fields[last[2][i]] = last[2][i + 1] end
      audit.n, audit.h, audit.t = n, fields.h or audit.h, tonumber(fields.t or '0') or audit.t
    end
  end
end

-- Returns the entry's table: x may still be set.
function audit.add(body, mac, x)
  local entry = {b = body, m = mac, x = x or ''}
  audit.entries[#audit.entries + 1] = entry
  return entry
end

-- Returns number and hash of the newest entry before, and after.
function audit.write()
  local before, before_hash = audit.n, audit.h
  if #audit.entries > 0 then
    if audit.was ~= audit.runid then
      table.insert(audit.entries, 1, {b = '', m = '', x = audit.was and 'restart' or 'begin'})
    end
    local time = redis.call('TIME')
    audit.t = math.max(audit.t, tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
    local t = string.format('%.0f', audit.t)
    for _, e in ipairs(audit.entries) do
      audit.n = audit.n + 1
      local n = string.format('%.0f', audit.n)
      audit.h = redis.sha1hex(audit.h .. ' ' .. n .. ' ' .. t .. ' ' .. e.x .. '\n' .. e.m)
      e.n = n
      redis.call('XADD', audit.base .. 'audit', n .. '-0', 't', t, 'x', e.x, 'm', e.m, 'b', e.b, 'h', audit.h)
    end
    redis.call('HSET', audit.base .. 'auditmeta', 'n', string.format('%.0f', audit.n), 'h', audit.h, 't', t, 'runid', audit.runid)
  end
  return {string.format('%.0f', before), before_hash, string.format('%.0f', audit.n), audit.h}
end
