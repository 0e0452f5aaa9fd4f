-- Remove consumers that own nothing: oneself at the end, and those that have been silent for long.
-- Keys: lanes.
-- Arguments: leaving, the consumer to remove, "" for none; silent_ms, after which any other is removed; registry, of the
--   workers.
-- Returns how many were removed.
-- May be repeated, and cut short: who has entries stays, and who is removed and lives comes back with its next read.
local removed = 0
if leaving ~= '' then redis.pcall('HDEL', registry, leaving) end  -- pcall: see workers.lua
for _, requests in pairs(lanes) do
  local consumers = redis.pcall('XINFO', 'CONSUMERS', requests, GROUP)
  if not consumers.err then
    for _, raw in ipairs(consumers) do
      local info = as_table(raw)
      if info.pending == 0 and (info.name == leaving or info.idle > silent_ms) then
        redis.call('XGROUP', 'DELCONSUMER', requests, GROUP, info.name)
        removed = removed + 1
      end
    end
  end
end
return removed
