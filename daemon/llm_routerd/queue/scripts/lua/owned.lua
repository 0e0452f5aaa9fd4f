-- Which of these events streams belong to entries that are sought?
-- Keys: streams, of events.
-- Arguments: sought, {lane, entry...}.
-- Returns {{position (from 0), entry, lane}...} of those that do.
-- Changes nothing.
local is_sought, found = {}, {}
for i = 1, #sought, 2 do is_sought[sought[i + 1] .. ' ' .. sought[i]] = true end
for i, events in ipairs(streams) do
  local ok, entry, lane = pcall(owner_of, events)  -- pcall: the key may be no stream
  if ok and entry and is_sought[entry .. ' ' .. tostring(lane)] then
    found[#found + 1] = {i - 1, entry, lane}
  end
end
return found
