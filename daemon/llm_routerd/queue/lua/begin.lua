-- Begin (or go on with) one request on this worker: is it ours, is it open, which attempt is next?
-- KEYS  1 events, 2-4 lanes (high, normal, low)
-- ARGV  1 group, 2 consumer, 3 entry, 4 lane, 5 "new" | "claimed", 6 delivery, 7 TTL ms,
--       8 data of the attempt event (entry and lane are added unless the stream names them), 9 "1" to PUBLISH as well,
--       10 the request's id
-- Returns {"begun", n} | {"sealed", type} | {"duplicate"} | {"collision"} | {"lost"} | {"returned"}
--       | {"unwritable"}: nothing was done, and no event of ours can be written to the stream, ever
-- May be repeated after a lost reply: the attempt that it wrote is recognised.
local LANE = {high = KEYS[2], normal = KEYS[3], low = KEYS[4]}
local events, group, consumer, entry, lane = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local requests = LANE[lane]

local function settle(verdict, detail)
  ask_lane('XACK', requests, group, entry)
  ask_lane('XDEL', requests, entry)
  return {verdict, detail}
end

local pending = (ask_lane('XPENDING', requests, group, entry, entry, 1) or {})[1]
if not pending or pending[2] ~= consumer then return {'lost'} end

local n, owner = 1, nil
local found = redis.pcall('XREVRANGE', events, '+', '-', 'COUNT', 1)
if found.err then return is_other_type(found) and {'unwritable'} or found end
local last = found[1]
if last then
  if is_at_end(last[1]) then
    if redis.call('PTTL', events) < 0 then redis.call('PEXPIRE', events, ARGV[7]) end
    local final = redis.call('XRANGE', events, FINAL, FINAL)[1]
    if not final then return {'unwritable'} end
    return settle('sealed', type_of(final))
  end
  local its_lane
  owner, its_lane = owner_of(events)
  if owner ~= entry or its_lane ~= lane then
    if is_waiting(LANE, owner, its_lane, ARGV[10]) then
      -- Two producers, two lanes, one millisecond: XADD gave both entries the same ID, and neither set an `id`.
      if owner == entry and ARGV[10] == entry then return {'collision'} end
      return settle('duplicate')
    end
    owner = nil  -- it is gone, unanswered (trimmed or flushed), or never was: this one takes its place
  end
  local number = string.match(last[1], '^(%d+)-')
  local attempt = attempt_of(events, number) or {}
  if owner == entry and attempt.consumer == consumer and tostring(attempt.delivery) == ARGV[6]
    and last[1] == number .. '-0' then
    return {'begun', tonumber(number)}
  end
  if ARGV[5] == 'new' and owner == entry and type(attempt.consumer) == 'string' and attempt.consumer ~= consumer
    and exists(requests, entry) then
    local delivery = type(attempt.delivery) == 'number' and attempt.delivery or 1
    -- Delivered as new, and yet begun by another: the group was dropped and made again.  The other one may well
    -- be alive, so it gets its entry back; if it is dead, its lease runs out as ever.
    redis.call('XCLAIM', requests, group, attempt.consumer, 0, entry,
      'RETRYCOUNT', string.format('%.0f', math.max(1, math.min(delivery, 1000))), 'JUSTID')
    return {'returned'}
  end
  n = tonumber(number) + 1
  if n >= FINAL_MS then return {'unwritable'} end
end
local attempt_id = string.format('%.0f-0', n)  -- and not 1e+14-0

local data = ARGV[8]
if owner ~= entry then data = string.sub(data, 1, -2) .. ',"entry":"' .. entry .. '","lane":"' .. lane .. '"}' end
local added = redis.pcall('XADD', events, attempt_id, 'type', 'attempt', 'data', data)
if type(added) == 'table' and added.err then
  return is_passed(added) and {'unwritable'} or added
end
redis.call('PEXPIRE', events, ARGV[7])
-- The lease begins anew: the entry may have come to a worker that slept since, and the next renewal is to be in time.
if exists(requests, entry) then redis.call('XCLAIM', requests, group, consumer, 0, entry, 'JUSTID') end
if ARGV[9] == '1' then
  redis.call('PUBLISH', events, '{"id":"' .. attempt_id .. '","type":"attempt","data":' .. data .. '}')
end
return {'begun', n}
