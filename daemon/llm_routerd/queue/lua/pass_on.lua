-- Hand an entry back for a worker that knows the model which it asks for, if one lives.
-- KEYS  1 lane
-- ARGV  1 group, 2 consumer, 3 entry, 4 the registry of workers, 5 the model, 6 who owns the entry from now on,
--       7 idle time in ms to give it, 8 "1" if every living worker has been able to tell of itself, as far as we know,
--       9 the server's time in ms when this was asked for, 10 by how much it may differ
-- Returns "passed" | "unknown" (nobody else knows the model; nothing was done) | "lost" (it is not ours any more;
--       where the group is gone, it comes anew with the next one)
--       | "parked": nobody is known to know the model, but registrations may have run out while the server was away, or
--         stood still, or its clock may have jumped; it is handed back all the same, and taken up by any later
-- To be taken up raises the delivery count again, so that it stays as it was.
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)  -- pcall: the group may be gone
if pending.err then return exists(KEYS[1], ARGV[3]) and 'lost' or 'unknown' end
if not pending[1] or pending[1][2] ~= ARGV[2] then return 'lost' end
local workers = registrations(ARGV[4], now_ms())
local verdict = another_knows(workers, ARGV[2], ARGV[5]) and 'passed' or 'parked'

-- Whether all who live are in the registry.
local function is_complete() return ARGV[8] ~= '' and math.abs(now_ms() - ARGV[9]) <= tonumber(ARGV[10]) end

if not exists(KEYS[1], ARGV[3]) or (verdict == 'parked' and is_complete()) then return 'unknown' end
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[6], 0, ARGV[3],
  'IDLE', ARGV[7], 'RETRYCOUNT', math.max(0, pending[1][4] - 1), 'JUSTID')
return verdict
