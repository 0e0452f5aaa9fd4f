-- Hand entries back, so that any worker may take them at once and it does not count as a crash.
-- KEYS  1-3 lanes (high, normal, low); ARGV  1 group, 2 consumer, 3 idle time in ms to give them (above the lease),
--       then per entry: lane number, entry
-- Returns how many were handed back.
local given = 0
for i = 4, #ARGV, 2 do
  local requests, entry = KEYS[tonumber(ARGV[i])], ARGV[i + 1]
  local pending = redis.call('XPENDING', requests, ARGV[1], entry, entry, 1)[1]
  if pending and pending[2] == ARGV[2] then
    redis.call('XCLAIM', requests, ARGV[1], 'handed-back', 0, entry,
      'IDLE', ARGV[3], 'RETRYCOUNT', math.max(0, pending[4] - 1), 'JUSTID')
    given = given + 1
  end
end
return given
