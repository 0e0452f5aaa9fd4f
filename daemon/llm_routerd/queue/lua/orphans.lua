-- Find the entries of a lane that Redis has delivered and that nobody owns, or take some of them.
-- Redis delivers nothing twice: who removes a dead consumer (XGROUP DELCONSUMER) drops what it had, and a group made at
-- `$`, or moved on (XGROUP SETID), passes over what stands before.
-- KEYS  1 lane
-- ARGV  1 group, 2 consumer, or who owns what was handed back: for whoever has room, 3 how many to look at, 4 "-" or the entry to go on after,
--       5 the server's time in ms when this was asked for, as far as the worker knows; "" if it does not matter,
--       6 how much later it may be, 7 the registry of workers, 8 one's own lease in ms,
--       9 for how many ms they have been seen to be orphans, 10... entries to take
-- To take is to look again: who has settled or taken one meanwhile was first.  Nothing is taken if the server has stood
-- still since this was asked for: the renewals of the living stand in the queue behind this.
-- Nor is anything taken from a worker that may live: it has its entries back within its lease, the longest one counts.
-- Returns {next, {entry...}, {{entry, fields}...}, lease}: where to go on ("-": all has been seen), the orphans found (if
-- none were to be taken), those taken (if next is one of those that were to be, none behind it has been looked at), and
-- the longest lease of all living workers in ms.
local HANDED_BACK_IDLE = 172800000  -- ms, as in hand_back.lua
local requests, group, consumer = KEYS[1], ARGV[1], ARGV[2]

local function group_of_lane()
  for _, raw in ipairs(ask_lane('XINFO', 'GROUPS', requests) or {}) do
    local info = as_table(raw)
    if info.name == group then return info end
  end
end

local function is_orphan(entry, delivered)
  return not is_before(delivered, entry) and #redis.call('XPENDING', requests, group, entry, entry, 1) == 0
end

local longest = longest_lease(registrations(ARGV[7], now_ms()), tonumber(ARGV[8]))
if #ARGV > 9 and longest > tonumber(ARGV[9]) then return {'-', {}, {}, longest} end
if ARGV[5] ~= '' then
  local now = redis.call('TIME')
  if now[1] * 1000 + now[2] / 1000 - ARGV[5] > tonumber(ARGV[6]) then return {'-', {}, {}, longest} end
end
if redis.call('EXISTS', requests) == 0 then return {'-', {}, {}, longest} end
local info = group_of_lane()
if not info then return {'-', {}, {}, longest} end  -- it will be made at 0, and all is new; or it is of another type
local delivered = info['last-delivered-id']

local taken, size = {}, 0
for i = 10, #ARGV do
  local entry = ARGV[i]
  local found = redis.call('XRANGE', requests, entry, entry)[1]
  if found and is_orphan(entry, delivered) then
    if is_handed_back(consumer) then
      redis.call('XCLAIM', requests, group, consumer, 0, entry,
        'IDLE', HANDED_BACK_IDLE, 'RETRYCOUNT', 0, 'FORCE', 'JUSTID')
      taken[#taken + 1] = {entry, {}}
    else
      redis.call('XCLAIM', requests, group, consumer, 0, entry, 'FORCE', 'RETRYCOUNT', 1, 'JUSTID')
      taken[#taken + 1] = {entry, found[2]}
      size = size + size_of(found)
    end
    if size > MOST_REPLY_BYTES and i < #ARGV then return {entry, {}, taken, longest} end
  end
end
if #ARGV > 9 then return {'-', {}, taken, longest} end

-- What stands there is pending, new or an orphan.  Servers that do not know how many are new say nothing here.
local lag = tonumber(info.lag or nil)
if lag and redis.call('XLEN', requests) <= info.pending + lag then return {'-', {}, {}, longest} end
local from = ARGV[4] == '-' and '-' or '(' .. ARGV[4]
local seen = redis.call('XRANGE', requests, from, delivered, 'COUNT', ARGV[3])
local orphans = {}
for _, item in ipairs(seen) do
  if is_orphan(item[1], delivered) then orphans[#orphans + 1] = item[1] end
end
return {#seen == tonumber(ARGV[3]) and seen[#seen][1] or '-', orphans, {}, longest}
