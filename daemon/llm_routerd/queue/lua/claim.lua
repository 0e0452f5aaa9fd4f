-- Take over what was delivered to a worker that has not renewed its lease.
-- KEYS  1 lane
-- ARGV  1 group, 2 consumer, 3 lease ms, 4 how many, 5 cursor ("-" or an entry to go on after),
--       6 "own" to take up what is one's own already (a reply that was lost), else ""
-- Returns {next cursor, {{entry, fields, deliveries}...}, {entries that are pending but no longer exist...}}
-- The delivery count rises by one, but not for one's own: that is a reply that was lost, and no crash.
local requests, group, consumer = KEYS[1], ARGV[1], ARGV[2]
local from = ARGV[5] == '-' and '-' or '(' .. ARGV[5]
local idle
if ARGV[6] == 'own' then
  idle = redis.call('XPENDING', requests, group, from, '+', ARGV[4], consumer)
else
  idle = redis.call('XPENDING', requests, group, 'IDLE', ARGV[3], from, '+', ARGV[4])
end
local claimed, gone = {}, {}
for _, item in ipairs(idle) do
  local entry, owner, count = item[1], item[2], item[4]
  local deliveries = owner == consumer and count or count + 1
  local reply = redis.call('XCLAIM', requests, group, consumer, 0, entry, 'RETRYCOUNT', deliveries)
  if reply[1] then
    claimed[#claimed + 1] = {entry, reply[1][2], deliveries}
  else
    redis.call('XACK', requests, group, entry)
    gone[#gone + 1] = entry
  end
end
local cursor = #idle == tonumber(ARGV[4]) and idle[#idle][1] or '-'
return {cursor, claimed, gone}
