-- The end of apply: decide every mutation, then write.
local results = {}
for i = 1, tonumber(ARGV[3]) do
  results[i] = ops[arg()]()
end
flush()
local reply = head()
reply[#reply + 1] = results
return reply
