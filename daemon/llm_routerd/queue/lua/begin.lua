-- Begin (or go on with) one request on this worker: is it ours, is it open, which attempt is next?
-- KEYS  1 events, 2-4 lanes (high, normal, low)
-- ARGV  1 group, 2 consumer, 3 entry, 4 lane, 5 "new" | "claimed", 6 delivery, 7 TTL ms,
--       8 data of the attempt event (on a request's first attempt, entry and lane are added), 9 "1" to PUBLISH as well
-- Returns {"begun", n} | {"sealed", type} | {"duplicate"} | {"collision"} | {"lost"} | {"returned"}
-- May be repeated after a lost reply: the attempt that it wrote is recognised.
local FINAL = '9007199254740991-0'
local LANE = {high = KEYS[2], normal = KEYS[3], low = KEYS[4]}
local events, group, consumer, entry, lane = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local requests = LANE[lane]

local function field(item, name)
  local fields = item[2]
  for i = 1, #fields, 2 do
    if fields[i] == name then return fields[i + 1] end
  end
end

local function data_of(item)
  local ok, data = pcall(cjson.decode, field(item, 'data') or '')
  return ok and type(data) == 'table' and data or {}
end

local function settle(verdict, detail)
  redis.call('XACK', requests, group, entry)
  redis.call('XDEL', requests, entry)
  return {verdict, detail}
end

local pending = redis.call('XPENDING', requests, group, entry, entry, 1)[1]
if not pending or pending[2] ~= consumer then return {'lost'} end

local n = 1
local last = redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]
if last then
  if last[1] == FINAL then
    if redis.call('PTTL', events) < 0 then redis.call('PEXPIRE', events, ARGV[7]) end
    return settle('sealed', field(last, 'type'))
  end
  local head = data_of(redis.call('XRANGE', events, '-', '+', 'COUNT', 1)[1])
  if head.entry == entry and head.lane ~= lane then
    -- Two producers, two lanes, one millisecond: XADD gave both entries the same ID, and neither set an `id`.
    return {'collision'}
  end
  if head.entry ~= entry then
    local other = LANE[head.lane]
    if other and #redis.call('XRANGE', other, head.entry, head.entry) > 0 then return settle('duplicate') end
    -- else the entry that began it is gone, unanswered (trimmed or flushed): this one takes its place
  end
  local number = string.match(last[1], '^(%d+)-')
  local attempt = redis.call('XRANGE', events, number .. '-0', number .. '-0')[1]
  local owner = attempt and data_of(attempt) or {}
  if head.entry == entry and owner.consumer == consumer and tostring(owner.delivery) == ARGV[6]
    and last[1] == number .. '-0' then
    return {'begun', tonumber(number)}
  end
  if ARGV[5] == 'new' and head.entry == entry and owner.consumer and owner.consumer ~= consumer then
    -- Delivered as new, and yet begun by another: the group was dropped and made again.  The other one may well
    -- be alive, so it gets its entry back; if it is dead, its lease runs out as ever.
    redis.call('XCLAIM', requests, group, owner.consumer, 0, entry, 'RETRYCOUNT', owner.delivery or 1, 'JUSTID')
    return {'returned'}
  end
  n = tonumber(number) + 1
end

local data = ARGV[8]
if not last then data = string.sub(data, 1, -2) .. ',"entry":"' .. entry .. '","lane":"' .. lane .. '"}' end
redis.call('XADD', events, n .. '-0', 'type', 'attempt', 'data', data)
redis.call('PEXPIRE', events, ARGV[7])
-- The lease begins anew: the entry may have come to a worker that slept since, and the next renewal is to be in time.
redis.call('XCLAIM', requests, group, consumer, 0, entry, 'JUSTID')
if ARGV[9] == '1' then
  redis.call('PUBLISH', events, '{"id":"' .. n .. '-0","type":"attempt","data":' .. data .. '}')
end
return {'begun', n}
