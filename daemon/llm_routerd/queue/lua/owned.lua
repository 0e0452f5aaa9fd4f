-- Which of these events streams belong to entries that are sought?
-- KEYS  events streams; ARGV  entry, lane, entry, lane, ...
-- Returns {{position (from 0), entry, lane}...}
local sought, found = {}, {}
for i = 1, #ARGV, 2 do sought[ARGV[i] .. ' ' .. ARGV[i + 1]] = true end
for i = 1, #KEYS do
  local ok, entry, lane = pcall(owner_of, KEYS[i])  -- pcall: the key may be no stream
  if ok and entry and sought[entry .. ' ' .. tostring(lane)] then
    found[#found + 1] = {i - 1, entry, lane}
  end
end
return found
