-- A run is over: calls that its tools have not begun are taken back, and nothing is heard any more.
-- Keys: inbox; consent; streams, of the tools.
-- Arguments: ttl_ms, how long what comes late is kept; calls, {number of a tool's stream, entry there...}.
-- Returns of each call 1 where a tool may have taken it, else 0.
-- May be repeated; after a lost reply all may have been taken.
local told = {}
for i = 1, #calls, 2 do
  local stream = streams[tonumber(calls[i])]
  local ok, taken = pcall(is_taken, stream, calls[i + 1])  -- pcall: others may have made it what they like
  told[#told + 1] = (taken or not ok) and 1 or 0
  redis.pcall('XDEL', stream, calls[i + 1])
end
for _, stream in ipairs({inbox, consent}) do
  redis.pcall('XTRIM', stream, 'MAXLEN', 0)
  redis.pcall('PEXPIRE', stream, ttl_ms)
end
return told
