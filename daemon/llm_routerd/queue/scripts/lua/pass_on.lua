-- Hand an entry back for a worker that knows the model which it asks for, if one lives.
-- Keys: requests, the lane.
-- Arguments: consumer; entry; registry, of the workers; model; owner, who has the entry from now on; is_complete, whether
--   every living worker has been able to tell of itself, as far as we know; asked_ms, the server's time when this was
--   asked for; late_ms, by how much it may differ.
-- Returns "passed" | "unknown" (nobody else knows the model; nothing was done) | "lost" (it is not ours any more;
--       where the group is gone, it comes anew with the next one)
--       | "parked": nobody is known to know the model, but registrations may have run out while the server was away, or
--         stood still, or its clock may have jumped; it is handed back all the same, and taken up by any later
-- After a lost reply it is "lost": the entry is handed back.
local pending = redis.pcall('XPENDING', requests, GROUP, entry, entry, 1)  -- pcall: the group may be gone
if pending.err then return exists(requests, entry) and 'lost' or 'unknown' end
if not pending[1] or pending[1][2] ~= consumer then return 'lost' end
local verdict = another_knows(registrations(registry, now_ms()), consumer, model) and 'passed' or 'parked'

-- Whether all who live are in the registry.
local function is_told() return is_complete and math.abs(now_ms() - asked_ms) <= late_ms end

if not exists(requests, entry) or (verdict == 'parked' and is_told()) then return 'unknown' end
give_back(requests, entry, owner, pending[1][4])
return verdict
