-- Shared by the scripts whose change is in the audit log: body and mac of the entry, "" where there is none.
-- begin before the first write; finish returns what audit.write does, or {}.
local told = {}

function told.begin(body, mac)
  told.body, told.mac = body or '', mac
  if told.body ~= '' then
    audit.look(base)
  end
end

function told.finish(found)
  if told.body == '' then
    return {}
  end
  audit.add(told.body, told.mac, found)
  return audit.write()
end
