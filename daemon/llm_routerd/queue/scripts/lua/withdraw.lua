-- A run is over: calls that its tools have not begun are taken back, and nothing is heard any more.
-- Keys: inbox; consent; streams, of the tools.
-- Arguments: ttl_ms, how long what comes late is kept; calls, {number of a tool's stream, entry there...}.
-- Returns nothing.  May be repeated.
for i = 1, #calls, 2 do redis.pcall('XDEL', streams[tonumber(calls[i])], calls[i + 1]) end
for _, stream in ipairs({inbox, consent}) do
  redis.pcall('XTRIM', stream, 'MAXLEN', 0)
  redis.pcall('PEXPIRE', stream, ttl_ms)
end
