-- Begin (or go on with) one request on this worker: is it ours, is it open, which attempt is next?
-- KEYS  1 events, 2-4 lanes (high, normal, low)
-- ARGV  1 group, 2 consumer, 3 entry, 4 lane, 5 "new" | "claimed", 6 delivery, 7 TTL ms,
--       8 data of the attempt event (on a request's first attempt, entry and lane are added), 9 "1" to PUBLISH as well,
--       10 the request's id
-- Returns {"begun", n} | {"sealed", type} | {"duplicate"} | {"collision"} | {"lost"} | {"returned"}
--       | {"unwritable"}: nothing was done, and no event of ours can be written to the stream, ever
-- May be repeated after a lost reply: the attempt that it wrote is recognised.
-- Producers may write to events streams (they cancel there), so all that stands in one may be anything.
local FINAL, FINAL_MS = '9007199254740991-0', 9007199254740991
local LANE = {high = KEYS[2], normal = KEYS[3], low = KEYS[4]}
local events, group, consumer, entry, lane = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local requests = LANE[lane]

local function field(item, name)
  local fields = item[2]
  for i = 1, #fields, 2 do
    if fields[i] == name then return fields[i + 1] end
  end
end

-- Whether an event ID is the final one's or beyond it, where only others write.
local function is_at_end(id)
  return tonumber(string.match(id, '^%d+')) >= FINAL_MS
end

local function data_of(item)
  local ok, data = pcall(cjson.decode, field(item, 'data') or '')
  return ok and type(data) == 'table' and data or {}
end

-- Whether an entry of a lane is a request of this one's id.
local function is_of_this_id(item)
  local id = field(item, 'id') or data_of(item).id or item[1]
  return id == ARGV[10]
end

-- The entry that a stream's first event names, if it is one of the lane that it names, and of this id.
local function is_waiting(head)
  local other = type(head.lane) == 'string' and LANE[head.lane]
  if not other or type(head.entry) ~= 'string' then return false end
  local found = redis.pcall('XRANGE', other, head.entry, head.entry)
  return not found.err and found[1] and is_of_this_id(found[1])
end

local function settle(verdict, detail)
  redis.call('XACK', requests, group, entry)
  redis.call('XDEL', requests, entry)
  return {verdict, detail}
end

local pending = redis.call('XPENDING', requests, group, entry, entry, 1)[1]
if not pending or pending[2] ~= consumer then return {'lost'} end

local n = 1
local found = redis.pcall('XREVRANGE', events, '+', '-', 'COUNT', 1)
if found.err then return {'unwritable'} end  -- a key of another type
local last = found[1]
if last then
  if is_at_end(last[1]) then
    if redis.call('PTTL', events) < 0 then redis.call('PEXPIRE', events, ARGV[7]) end
    local final = redis.call('XRANGE', events, FINAL, FINAL)[1]
    if not final then return {'unwritable'} end
    return settle('sealed', field(final, 'type'))
  end
  local head = data_of(redis.call('XRANGE', events, '-', '+', 'COUNT', 1)[1])
  if head.entry ~= entry or head.lane ~= lane then
    if is_waiting(head) then
      -- Two producers, two lanes, one millisecond: XADD gave both entries the same ID, and neither set an `id`.
      if head.entry == entry and ARGV[10] == entry then return {'collision'} end
      return settle('duplicate')
    end
    -- else the entry that began it is gone, unanswered (trimmed or flushed), or never was: this one takes its place
  end
  local number = string.match(last[1], '^(%d+)-')
  local attempt = redis.call('XRANGE', events, number .. '-0', number .. '-0')[1]
  local owner = attempt and data_of(attempt) or {}
  if head.entry == entry and owner.consumer == consumer and tostring(owner.delivery) == ARGV[6]
    and last[1] == number .. '-0' then
    return {'begun', tonumber(number)}
  end
  if ARGV[5] == 'new' and head.entry == entry and type(owner.consumer) == 'string' and owner.consumer ~= consumer then
    local delivery = type(owner.delivery) == 'number' and owner.delivery or 1
    -- Delivered as new, and yet begun by another: the group was dropped and made again.  The other one may well
    -- be alive, so it gets its entry back; if it is dead, its lease runs out as ever.
    redis.call('XCLAIM', requests, group, owner.consumer, 0, entry,
      'RETRYCOUNT', string.format('%.0f', math.max(1, math.min(delivery, 1000))), 'JUSTID')
    return {'returned'}
  end
  n = tonumber(number) + 1
  if n >= FINAL_MS then return {'unwritable'} end
end
local attempt_id = string.format('%.0f-0', n)  -- and not 1e+14-0

local data = ARGV[8]
if not last then data = string.sub(data, 1, -2) .. ',"entry":"' .. entry .. '","lane":"' .. lane .. '"}' end
local added = redis.pcall('XADD', events, attempt_id, 'type', 'attempt', 'data', data)
if type(added) == 'table' and added.err then
  -- The stream's last ID may lie beyond its last entry: what stood there was deleted.
  return string.find(added.err, 'equal or smaller', 1, true) and {'unwritable'} or added
end
redis.call('PEXPIRE', events, ARGV[7])
-- The lease begins anew: the entry may have come to a worker that slept since, and the next renewal is to be in time.
redis.call('XCLAIM', requests, group, consumer, 0, entry, 'JUSTID')
if ARGV[9] == '1' then
  redis.call('PUBLISH', events, '{"id":"' .. attempt_id .. '","type":"attempt","data":' .. data .. '}')
end
return {'begun', n}
