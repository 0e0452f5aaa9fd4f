-- The tools that are registered.
-- Keys: tools.
-- Arguments: most, of them; most_bytes, of one: a longer one is not looked at.
-- Returns {{name, registration; of a longer one: its size}...}, in the order of their names.
-- Changes nothing.
local names = redis.pcall('HKEYS', tools)
if names.err then return {} end  -- a key of another type
local found = {}
table.sort(names)
for _, name in ipairs(names) do
  if #found == most then break end
  if #name <= 64 then
    local size = redis.call('HSTRLEN', tools, name)
    found[#found + 1] = {name, size > most_bytes and size or redis.call('HGET', tools, name)}
  end
end
return found
