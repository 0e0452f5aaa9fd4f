-- Take over what was delivered to a worker that has not renewed its lease.
-- KEYS  1 lane
-- ARGV  1 group, 2 consumer, 3 lease ms, 4 how many, 5 cursor ("-" or an entry to go on after),
--       6 "" for whatever has outlived its lease, or the consumer whose entries to take at any time: oneself (a reply
--         was lost), or what was handed back,
--       7 the server's time in ms when this was asked for, as far as the worker knows; "" if it does not matter,
--       8 how much later it may be, 9 the registry of workers, "" or none: one's own lease is all that counts
-- Returns {next cursor ("-": all has been seen), {{entry, fields, deliveries}...}, {{entry, deliveries}...}, late}
-- The second list has what no longer exists (somebody trimmed it) and whose worker is dead: handed back, one's own, or
-- of a consumer that has not been seen for as long as a lease.  It stays pending until its request has been ended.
-- What was handed back for a worker that knows a model is left for one of those, as long as one lives.
-- The delivery count rises by one, but not where one asks for one's own: that is a reply that was lost, and no crash.
-- late is 1, and nothing is taken, if the server has stood still or its clock has jumped since this was asked for:
-- every lease seems to have run out then, and the renewals of the living stand in the queue behind this.
local requests, group, consumer = KEYS[1], ARGV[1], ARGV[2]
if ARGV[7] ~= '' then
  local now = redis.call('TIME')
  if now[1] * 1000 + now[2] / 1000 - ARGV[7] > tonumber(ARGV[8]) then return {ARGV[5], {}, {}, 1} end
end
local workers = ARGV[6] == '' and registrations(ARGV[9] or '', now_ms()) or {}
local lease = longest_lease(workers, tonumber(ARGV[3]))
local from = ARGV[5] == '-' and '-' or '(' .. ARGV[5]
local idle
if ARGV[6] == '' then
  idle = ask_lane('XPENDING', requests, group, 'IDLE', lease, from, '+', ARGV[4])
else
  idle = ask_lane('XPENDING', requests, group, from, '+', ARGV[4], ARGV[6])
end
if not idle then return {'-', {}, {}, 0} end
local claimed, gone = {}, {}
local unseen  -- ms by consumer

local function is_dead(owner)
  if is_handed_back(owner) then return true end
  if ARGV[6] ~= '' then return false end  -- in a reply that was lost, perhaps; its lease will tell
  if owner == consumer then return true end
  if not unseen then
    unseen = {}
    for _, raw in ipairs(redis.call('XINFO', 'CONSUMERS', requests, group)) do
      local info = {}
      for i = 1, #raw, 2 do info[raw[i]] = raw[i + 1] end
      unseen[info.name] = info.idle
    end
  end
  return (unseen[owner] or math.huge) >= lease
end

local function is_for_others(owner)
  local model = string.match(owner, FOR_MODEL)
  return model and not knows(workers[consumer], model) and another_knows(workers, consumer, model)
end

local cursor = #idle == tonumber(ARGV[4]) and idle[#idle][1] or '-'
local size = 0
for i, item in ipairs(idle) do
  local entry, owner, count = item[1], item[2], item[4]
  local found = redis.call('XRANGE', requests, entry, entry)[1]
  if is_for_others(owner) then
    -- one of them will take it
  elseif found then
    local deliveries = ARGV[6] == consumer and count or count + 1
    redis.call('XCLAIM', requests, group, consumer, 0, entry, 'RETRYCOUNT', deliveries, 'JUSTID')
    claimed[#claimed + 1] = {entry, found[2], deliveries}
    size = size + size_of(found)
    if size > MOST_REPLY_BYTES and i < #idle then
      cursor = entry
      break
    end
  elseif is_dead(owner) then
    gone[#gone + 1] = {entry, count}
  end
end
return {cursor, claimed, gone, 0}
