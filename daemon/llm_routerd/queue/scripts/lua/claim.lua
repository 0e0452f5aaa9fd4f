-- Take over what was delivered to a worker that has not renewed its lease, the oldest first.
-- Keys: requests, the lane.
-- Arguments: consumer; lease_ms; most, how many to take (0: to look only); cursor, "-" or an entry to go on after;
--   from_owner, "" for whatever has outlived its lease, or the consumer whose entries to take at any time: oneself (a
--   reply was lost), or what was handed back; asked_ms, the server's time when this was asked for, as far as the worker
--   knows, nil if it does not matter; late_ms, how much later it may be; registry, of workers, "" for none: one's own
--   lease is all that counts.
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
-- After a lost reply what was taken is the consumer's own, and found by asking for that.
local PAGE = math.max(50, most)  -- of what one consumer owns
if is_late(asked_ms, late_ms) then return {cursor, {}, {}, 1, 0, 0} end
local workers = from_owner == '' and registrations(registry, now_ms()) or {}
local lease = longest_lease(workers, lease_ms)
local from = cursor == '-' and '-' or '(' .. cursor
local pending = ask_lane('XPENDING', requests, GROUP)
if not pending then return {'-', {}, {}, 0, 0, 0} end
local unread = math.max(0, redis.call('XLEN', requests) - pending[1])
local unseen  -- ms by consumer

local function is_dead(owner)
  if is_handed_back(owner) then return true end
  if from_owner ~= '' then return false end  -- in a reply that was lost, perhaps; its lease will tell
  if owner == consumer then return true end
  if not unseen then
    unseen = {}
    for _, raw in ipairs(redis.call('XINFO', 'CONSUMERS', requests, GROUP)) do
      local info = as_table(raw)
      unseen[info.name] = info.idle
    end
  end
  return (unseen[owner] or math.huge) >= lease
end

local function is_for_others(owner)
  local model = model_of(owner)
  return model and not knows(workers[consumer], model) and another_knows(workers, consumer, model)
end

-- Of each consumer a page; what lies behind the end of one is left for the next call.
local idle, last = {}, nil
for _, each in ipairs(pending[4] or {}) do
  local owner, page = each[1], {}
  if from_owner == '' and not is_for_others(owner) then
    page = redis.call('XPENDING', requests, GROUP, 'IDLE', lease, from, '+', PAGE, owner)
  elseif owner == from_owner then
    page = redis.call('XPENDING', requests, GROUP, from, '+', PAGE, owner)
  end
  for _, item in ipairs(page) do idle[#idle + 1] = item end
  if #page == PAGE and (not last or is_before(page[PAGE][1], last)) then last = page[PAGE][1] end
end
table.sort(idle, function(one, other) return is_before(one[1], other[1]) end)

local go_on = last or '-'
local claimed, gone, left, size = {}, {}, 0, 0
local is_full = most == 0
for _, item in ipairs(idle) do
  local entry, owner, count = item[1], item[2], item[4]
  if last and is_before(last, entry) then break end
  if is_full then
    if exists(requests, entry) then
      left = left + 1
      if most == 0 then go_on = cursor end
      break
    elseif most == 0 and is_dead(owner) then
      gone[#gone + 1] = {entry, count}
    end
  else
    local found = redis.call('XRANGE', requests, entry, entry)[1]
    if found then
      local deliveries = from_owner == consumer and count or count + 1
      redis.call('XCLAIM', requests, GROUP, consumer, 0, entry, 'RETRYCOUNT', deliveries, 'JUSTID')
      claimed[#claimed + 1] = {entry, found[2], deliveries}
      size = size + size_of(found)
      is_full = #claimed == most or size > MOST_REPLY_BYTES
      -- What was taken is idle no longer: whoever begins anew meets the oldest first.
      if is_full then go_on = from_owner == '' and '-' or entry end
    elseif is_dead(owner) then
      gone[#gone + 1] = {entry, count}
    end
  end
end
if most > 0 and is_full and left == 0 and not last then go_on = '-' end
return {go_on, claimed, gone, 0, left, unread}
