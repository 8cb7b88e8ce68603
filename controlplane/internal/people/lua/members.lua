-- Changes who belongs to an organisation. A member is "ROLE VERSION SINCE EMAIL": the role's number (1 owner, 2 admin,
-- 3 operator, 4 viewer), a version that grows with each change and never falls, Unix milliseconds, the folded address.
-- KEYS[1] fb:{ORG}:members, person -> member
-- ARGV    what, actor (whose right it is; empty for first), person, role, email
--   first   makes person the owner of an organisation that has no members
--   join    makes person a member; one who is a member already stays what they are
--   role    changes a member's role
--   remove  ends a membership
-- Returns {answer, version}: ok, already, missing, actor (may not), owner (only owners may), last (the last owner).
-- O(members) where an owner goes, else O(1).
local key, what, actor, person, role, email = KEYS[1], ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local function parse(id)
  local raw = redis.call('HGET', key, id)
  if not raw then
    return nil
  end
  local r, v, s, e = string.match(raw, '^(%d+) (%d+) (%d+) (%S+)$')
  return { role = tonumber(r), version = tonumber(v), since = s, email = e }
end
local function write(r, version, since, address)
  redis.call('HSET', key, person, string.format('%d %d %s %s', r, version, since, address))
end
local current = parse(person)
if what == 'first' then
  if current and current.role == 1 then
    return { 'already', current.version }
  end
  if redis.call('HLEN', key) > 0 then
    return { 'actor', 0 }
  end
  write(1, now, tostring(now), email)
  return { 'ok', now }
end
local by = parse(actor)
if not by or by.role > 2 then
  return { 'actor', 0 }
end
if what == 'join' then
  if role == 1 and by.role ~= 1 then
    return { 'owner', 0 }
  end
  if current then
    return { 'already', current.version }
  end
  write(role, now, tostring(now), email)
  return { 'ok', now }
end
if not current then
  return { 'missing', now }
end
if (current.role == 1 or role == 1) and by.role ~= 1 then
  return { 'owner', 0 }
end
if current.role == 1 and role ~= 1 then
  local owners = 0
  for _, raw in ipairs(redis.call('HVALS', key)) do
    if string.sub(raw, 1, 2) == '1 ' then
      owners = owners + 1
    end
  end
  if owners < 2 then
    return { 'last', 0 }
  end
end
local version = math.max(now, current.version + 1)
if what == 'remove' then
  redis.call('HDEL', key, person)
else
  write(role, version, current.since, current.email)
end
return { 'ok', version }
