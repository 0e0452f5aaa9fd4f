-- Take over what was delivered to a worker that has not renewed its lease, the oldest first.
-- KEYS  1 lane
-- ARGV  1 group, 2 consumer, 3 lease ms, 4 how many (0: to look only), 5 cursor ("-" or an entry to go on after),
--       6 "" for whatever has outlived its lease, or the consumer whose entries to take at any time: oneself (a reply
--         was lost), or what was handed back,
--       7 the server's time in ms when this was asked for, as far as the worker knows; "" if it does not matter,
--       8 how much later it may be, 9 the registry of workers, "" or none: one's own lease is all that counts
-- Returns {next cursor ("-": all has been seen), {{entry, fields, deliveries}...}, {{entry, deliveries}...}, late,
--   left, unread}
-- The second list has what no longer exists (somebody trimmed it) and whose worker is dead: handed back, one's own, or
-- of a consumer that has not been seen for as long as a lease.  It stays pending until its request has been ended.
-- What was handed back for a worker that knows a model is left for one of those, as long as one lives: what such a
-- consumer owns is not even looked at, so it stands in nobody's way.
-- The delivery count rises by one, but not where one asks for one's own: that is a reply that was lost, and no crash.
-- late is 1, and nothing is taken, if the server has stood still or its clock has jumped since this was asked for:
-- every lease seems to have run out then, and the renewals of the living stand in the queue behind this.
-- left: how many more were seen that could be taken; unread: how many entries of the lane nobody has been given yet.
-- To look only leaves the cursor where there is something to be taken.
local requests, group, consumer = KEYS[1], ARGV[1], ARGV[2]
local most, from_owner = tonumber(ARGV[4]), ARGV[6]
local PAGE = math.max(50, most)  -- of what one consumer owns
if ARGV[7] ~= '' then
  local now = redis.call('TIME')
  if now[1] * 1000 + now[2] / 1000 - ARGV[7] > tonumber(ARGV[8]) then return {ARGV[5], {}, {}, 1, 0, 0} end
end
local workers = from_owner == '' and registrations(ARGV[9] or '', now_ms()) or {}
local lease = longest_lease(workers, tonumber(ARGV[3]))
local from = ARGV[5] == '-' and '-' or '(' .. ARGV[5]
local pending = ask_lane('XPENDING', requests, group)
if not pending then return {'-', {}, {}, 0, 0, 0} end
local unread = math.max(0, redis.call('XLEN', requests) - pending[1])
local unseen  -- ms by consumer

local function is_dead(owner)
  if is_handed_back(owner) then return true end
  if from_owner ~= '' then return false end  -- in a reply that was lost, perhaps; its lease will tell
  if owner == consumer then return true end
  if not unseen then
    unseen = {}
    for _, raw in ipairs(redis.call('XINFO', 'CONSUMERS', requests, group)) do
      local info = as_table(raw)
      unseen[info.name] = info.idle
    end
  end
  return (unseen[owner] or math.huge) >= lease
end

local function is_for_others(owner)
  local model = string.match(owner, FOR_MODEL)
  return model and not knows(workers[consumer], model) and another_knows(workers, consumer, model)
end

-- Of each consumer a page; what lies behind the end of one is left for the next call.
local idle, last = {}, nil
for _, each in ipairs(pending[4] or {}) do
  local owner, page = each[1], {}
  if from_owner == '' and not is_for_others(owner) then
    page = redis.call('XPENDING', requests, group, 'IDLE', lease, from, '+', PAGE, owner)
  elseif owner == from_owner then
    page = redis.call('XPENDING', requests, group, from, '+', PAGE, owner)
  end
  for _, item in ipairs(page) do idle[#idle + 1] = item end
  if #page == PAGE and (not last or is_before(page[PAGE][1], last)) then last = page[PAGE][1] end
end
table.sort(idle, function(one, other) return is_before(one[1], other[1]) end)

local cursor = last or '-'
local claimed, gone, left, size = {}, {}, 0, 0
local is_full = most == 0
for _, item in ipairs(idle) do
  local entry, owner, count = item[1], item[2], item[4]
  if last and is_before(last, entry) then break end
  if is_full then
    if exists(requests, entry) then
      left = left + 1
      if most == 0 then cursor = ARGV[5] end
      break
    elseif most == 0 and is_dead(owner) then
      gone[#gone + 1] = {entry, count}
    end
  else
    local found = redis.call('XRANGE', requests, entry, entry)[1]
    if found then
      local deliveries = from_owner == consumer and count or count + 1
      redis.call('XCLAIM', requests, group, consumer, 0, entry, 'RETRYCOUNT', deliveries, 'JUSTID')
      claimed[#claimed + 1] = {entry, found[2], deliveries}
      size = size + size_of(found)
      is_full = #claimed == most or size > MOST_REPLY_BYTES
      -- What was taken is idle no longer: whoever begins anew meets the oldest first.
      if is_full then cursor = from_owner == '' and '-' or entry end
    elseif is_dead(owner) then
      gone[#gone + 1] = {entry, count}
    end
  end
end
if most > 0 and is_full and left == 0 and not last then cursor = '-' end
return {cursor, claimed, gone, 0, left, unread}
