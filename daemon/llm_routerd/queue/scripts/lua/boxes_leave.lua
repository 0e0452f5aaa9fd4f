-- A worker stops, or begins and knows of nothing: whatever it held or waited for is over.
-- Keys: calls; waiting.
-- Arguments: worker.
-- Returns how many calls that were.
-- May be repeated.
local now, count = now_ms(), 0
for _, key in ipairs({calls, waiting}) do
  local found = living(key, now, MOST_LEASED_MS)
  for i = 1, #found, 2 do
    if told_by(found[i + 1]).worker == worker then count = count + redis.call('HDEL', key, found[i]) end
  end
end
return count
