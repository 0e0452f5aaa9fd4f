-- Which of the runs that rest here have something to look at?
-- Keys: streams, of the events of some, then inboxes and consent streams of some.
-- Arguments: count, of those that are events.
-- Returns {position (from 0)...}: of events that have been ended, of streams in which something stands.
-- Changes nothing.
local found = {}
for at, stream in ipairs(streams) do
  if at <= count then
    local ended = redis.pcall('XRANGE', stream, FINAL, '+', 'COUNT', 1)  -- pcall: the key may be no stream
    if ended.err or #ended > 0 then found[#found + 1] = at - 1 end
  else
    local length = redis.pcall('XLEN', stream)
    if type(length) == 'number' and length > 0 then found[#found + 1] = at - 1 end
  end
end
return found
