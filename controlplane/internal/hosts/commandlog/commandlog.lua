-- The commands that a host has been given: hashes cmds:HOST and results:HOST, see package hosts.

-- Gives a host a command. Beyond COMMANDS_KEPT the oldest finished ones make room; where none is finished the answer is
-- false and nothing is done, unless the command `must` be given. `base` is "fb:{ORG}:".
-- O(commands kept) when there are that many, else O(1).
local function append_command(base, host, id, command, must)
  local commands, results = base .. 'cmds:' .. host, base .. 'results:' .. host
  if redis.call('HLEN', commands) >= COMMANDS_KEPT then
    local finished = redis.call('HKEYS', results)
    if #finished == 0 and not must then
      return false
    end
    table.sort(finished)
    for i = 1, math.min(#finished, math.max(1, math.floor(#finished / 2))) do
      redis.call('HDEL', commands, finished[i])
      redis.call('HDEL', results, finished[i])
    end
  end
  redis.call('HSET', commands, id, command)
  redis.call('SPUBLISH', base .. 'bell', 'command ' .. host)
  return true
end

-- Whether there is such a host to command. Fails where its log can't be written.
local function commandable(base, host)
  redis.call('HLEN', base .. 'cmds:' .. host)
  redis.call('HLEN', base .. 'results:' .. host)
  return redis.call('HEXISTS', base .. 'hosts', host) == 1
end
