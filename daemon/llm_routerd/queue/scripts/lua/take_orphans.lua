-- Take those of these entries of a lane that are orphans still: who has settled or taken one meanwhile was first.
-- Keys: requests, the lane.
-- Arguments: owner from now on, a consumer, or who owns what was handed back: for whoever has room; asked_ms, the server's
--   time when this was asked for, as far as the worker knows, nil if it does not matter; late_ms, how much later it may
--   be; registry, of the workers; lease_ms, one's own; seen_for_ms, for how long they have been seen to be orphans;
--   entries.
-- Returns {next, {{entry, fields}...}}: those taken; if next is one of the entries, none behind it has been looked at.
-- Nothing is taken if the server has stood still since this was asked for: the renewals of the living stand in the queue
-- behind this.  Nor from a worker that may live: it has its entries back within its lease, the longest one counts.
-- After a lost reply what was taken is the owner's, and found by `claim`.
local longest = longest_lease(registrations(registry, now_ms()), lease_ms)
if longest > seen_for_ms or is_late(asked_ms, late_ms) then return {'-', {}} end
local group = group_of(requests)
if not group then return {'-', {}} end

local taken, size = {}, 0
for i, entry in ipairs(entries) do
  local found = redis.call('XRANGE', requests, entry, entry)[1]
  if found and is_orphan(requests, entry, group) then
    if is_handed_back(owner) then
      redis.call('XCLAIM', requests, GROUP, owner, 0, entry,
        'IDLE', HANDED_BACK_IDLE_MS, 'RETRYCOUNT', 0, 'FORCE', 'JUSTID')
      taken[#taken + 1] = {entry, {}}
    else
      redis.call('XCLAIM', requests, GROUP, owner, 0, entry, 'FORCE', 'RETRYCOUNT', 1, 'JUSTID')
      taken[#taken + 1] = {entry, found[2]}
      size = size + size_of(found)
    end
    if size > MOST_REPLY_BYTES and i < #entries then return {entry, taken} end
  end
end
return {'-', taken}
