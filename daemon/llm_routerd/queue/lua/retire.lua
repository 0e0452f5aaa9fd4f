-- Remove consumers that own nothing: oneself at the end, and those that have been silent for long.
-- KEYS  1-3 lanes; ARGV  1 group, 2 consumer to remove ("" for none), 3 idle ms after which any other is removed,
--       4 the registry of workers
local removed = 0
if ARGV[2] ~= '' then redis.pcall('HDEL', ARGV[4], ARGV[2]) end  -- pcall: see workers.lua
for i = 1, #KEYS do
  local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[i], ARGV[1])
  if not consumers.err then
    for _, raw in ipairs(consumers) do
      local info = as_table(raw)
      if info.pending == 0 and (info.name == ARGV[2] or info.idle > tonumber(ARGV[3])) then
        redis.call('XGROUP', 'DELCONSUMER', KEYS[i], ARGV[1], info.name)
        removed = removed + 1
      end
    end
  end
end
return removed
