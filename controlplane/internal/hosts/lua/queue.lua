-- Queues a command for a host, see commandlog.lua.
-- KEYS[1] fb:{ORG}:hosts
-- ARGV    id, command id, command (binary)
-- Returns 1, 0 when there is no such host, -1 when too many wait. O(commands kept) when over the limit.
if not commandable(base, ARGV[1]) then
  return 0
end
return append_command(base, ARGV[1], ARGV[2], ARGV[3]) and 1 or -1
