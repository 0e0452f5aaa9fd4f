-- Find the entries of a lane that Redis has delivered and that nobody owns.
-- Keys: requests, the lane.
-- Arguments: most, how many to look at; cursor, "-" or the entry to go on after.
-- Returns {next, {entry...}}: where to go on ("-": all has been seen), and the orphans found.
-- Changes nothing.
local group = group_of(requests)
if not group then return {'-', {}} end
-- What stands there is pending, new or an orphan.  Servers that do not know how many are new say nothing here.
local lag = tonumber(group.lag or nil)
if lag and redis.call('XLEN', requests) <= group.pending + lag then return {'-', {}} end
local from = cursor == '-' and '-' or '(' .. cursor
local seen = redis.call('XRANGE', requests, from, group['last-delivered-id'], 'COUNT', most)
local orphans = {}
for _, item in ipairs(seen) do
  if is_orphan(requests, item[1], group) then orphans[#orphans + 1] = item[1] end
end
return {#seen == most and seen[#seen][1] or '-', orphans}
