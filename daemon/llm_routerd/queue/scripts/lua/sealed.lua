-- Which of these requests have been ended by somebody else?
-- Keys: streams, the events of each.
-- Arguments: none.
-- Returns {position (from 0)...} of those that have been.
-- Changes nothing.
local sealed = {}
for i, events in ipairs(streams) do
  local last = redis.pcall('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]  -- pcall: the key may be no stream
  if last and is_at_end(last[1]) then sealed[#sealed + 1] = i - 1 end
end
return sealed
