-- The tools that are registered.
-- Keys: tools.
-- Arguments: most, of them; most_bytes, of one: of a longer one there is so much, and one byte more.
-- Returns {{name, registration}...}, in the order of their names.
-- Changes nothing.
local flat = redis.pcall('HGETALL', tools)
if flat.err then return {} end  -- a key of another type
local found = {}
for i = 1, #flat, 2 do
  if #flat[i] <= 64 then found[#found + 1] = {flat[i], string.sub(flat[i + 1], 1, most_bytes + 1)} end
end
table.sort(found, function(one, other) return one[1] < other[1] end)
for at = #found, most + 1, -1 do found[at] = nil end
return found
