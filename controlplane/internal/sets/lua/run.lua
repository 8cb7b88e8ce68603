-- The end of apply: decide every mutation, then write. Before each mutation come the entry that the audit log is to have of it
-- and the entry's MAC, "" where there is none (package audit): it is written where the mutation is applied.
local results = {}
for i = 1, tonumber(ARGV[3]) do
  local entry, mac = arg(), arg()
  local result = ops[arg()]()
  results[i] = result
  if entry ~= '' and result[1] == 'ok' then audit.add(entry, mac, result.found) end
end
flush()
local reply = head()
reply[#reply + 1] = audit.reply or {}
reply[#reply + 1] = results
return reply
