-- Begin (or go on with) one request on this worker: is it ours, is it open, which attempt is next?
-- Keys: events; lanes.
-- Arguments: consumer; entry; lane; is_new, or claimed from another worker; deliveries, of the entry; ttl_ms; data, of the
--   attempt event (entry and lane are added unless the stream names them); publishes (PUBLISH as well); request_id; looks:
--   it is asked whether it may be begun, and nothing is written but what {"returned"} and {"duplicate"} need.
-- Returns {"begun", n} (where it only looks: the last attempt that there is, 0 for none, and whether it is this entry's:
--   1 or 0) | {"sealed", type} | {"duplicate"} | {"collision"} | {"lost"} | {"returned"}
--       | {"unwritable"}: nothing was done, and no event of ours can be written to the stream, ever
-- May be repeated after a lost reply: the attempt that it wrote is recognised.
local requests = lanes[lane]
local pending = (ask_lane('XPENDING', requests, GROUP, entry, entry, 1) or {})[1]
if not pending or pending[2] ~= consumer then return {'lost'} end

local n, owner = 1, nil
local found = redis.pcall('XREVRANGE', events, '+', '-', 'COUNT', 1)
if found.err then return is_other_type(found) and {'unwritable'} or found end
local last = found[1]
if last then
  if is_at_end(last[1]) then
    if redis.call('PTTL', events) < 0 then redis.call('PEXPIRE', events, ttl_ms) end
    local final = redis.call('XRANGE', events, FINAL, FINAL)[1]
    if not final then return {'unwritable'} end
    if looks then return {'sealed', type_of(final)} end
    return settle(requests, entry, 'sealed', type_of(final))
  end
  local its_lane
  owner, its_lane = owner_of(events)
  if owner ~= entry or its_lane ~= lane then
    if is_waiting(lanes, owner, its_lane, request_id) then
      -- Two producers, two lanes, one millisecond: XADD gave both entries the same ID, and neither set an `id`.
      if owner == entry and request_id == entry then return {'collision'} end
      return settle(requests, entry, 'duplicate')
    end
    owner = nil  -- it is gone, unanswered (trimmed or flushed), or never was: this one takes its place
  end
  local number = string.match(last[1], '^(%d+)-')
  local attempt = attempt_of(events, number) or {}
  if not looks and owner == entry and attempt.consumer == consumer and attempt.delivery == deliveries
    and last[1] == number .. '-0' then
    return {'begun', tonumber(number)}
  end
  if is_new and owner == entry and type(attempt.consumer) == 'string' and attempt.consumer ~= consumer
    and exists(requests, entry) then
    local counted = type(attempt.delivery) == 'number' and attempt.delivery or 1
    -- Delivered as new, and yet begun by another: the group was dropped and made again.  The other one may well
    -- be alive, so it gets its entry back; if it is dead, its lease runs out as ever.
    redis.call('XCLAIM', requests, GROUP, attempt.consumer, 0, entry,
      'RETRYCOUNT', string.format('%.0f', math.max(1, math.min(counted, 1000))), 'JUSTID')
    return {'returned'}
  end
  n = tonumber(number) + 1
  if n >= FINAL_MS then return {'unwritable'} end
end
if looks then return {'begun', n - 1, owner == entry and 1 or 0} end
local attempt_id = string.format('%.0f-0', n)  -- and not 1e+14-0

if owner ~= entry then data = string.sub(data, 1, -2) .. ',"entry":"' .. entry .. '","lane":"' .. lane .. '"}' end
local added = redis.pcall('XADD', events, attempt_id, 'type', 'attempt', 'data', data)
if is_refusal(added) then
  return is_passed(added) and {'unwritable'} or added
end
redis.call('PEXPIRE', events, ttl_ms)
-- The lease begins anew: the entry may have come to a worker that slept since, and the next renewal is to be in time.
if exists(requests, entry) then redis.call('XCLAIM', requests, GROUP, consumer, 0, entry, 'JUSTID') end
if publishes then publish(events, attempt_id, 'attempt', data) end
return {'begun', n}
