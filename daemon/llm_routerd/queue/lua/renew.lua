-- Renew the leases of all entries that this worker has in flight, and find the requests that have been sealed.
-- KEYS  1-3 lanes (high, normal, low), 4... events stream of each entry
-- ARGV  1 group, 2 consumer, 3 TTL ms, 4 the registry of workers, 5 lease ms, 6 JSON list of the models that it knows,
--       then for each entry: lane number (1-3), entry
-- Returns {{position...}, {position...}, ms, lease, complaint}: positions (from 0) of the lost and of the sealed ones,
-- the server's time in ms, the longest lease of all living workers in ms, and why this one cannot be registered.
-- Lost: another consumer owns it now.
-- An entry that was trimmed meanwhile cannot be claimed again: it stays pending, and grows old.  That its worker lives
-- is then told by the consumer, which is seen with each renewal.
local LAST_ID = '18446744073709551615-0'
local group, consumer = ARGV[1], ARGV[2]
local lost, sealed = {}, {}
local oldest = {}  -- by lane: the ID of its first entry; false: it has none

-- Whether an entry is older than all that a lane holds.  One deleted from among others is not told: to look each up
-- would be to read every body at every renewal.
local function is_trimmed(requests, entry)
  if oldest[requests] == nil then
    local first = redis.call('XRANGE', requests, '-', '+', 'COUNT', 1)[1]
    oldest[requests] = first and first[1] or false
  end
  return not oldest[requests] or is_before(entry, oldest[requests])
end

for i = 4, #KEYS do
  local events, requests, entry = KEYS[i], KEYS[tonumber(ARGV[2 * i - 1])], ARGV[2 * i]
  local last = redis.pcall('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]  -- pcall: the key may be no stream
  if last and is_at_end(last[1]) then
    sealed[#sealed + 1] = i - 4
  else
    if last then redis.call('PEXPIRE', events, ARGV[3]) end
    local pending = redis.pcall('XPENDING', requests, group, entry, entry, 1)
    local owner = not pending.err and pending[1] or nil
    if owner and is_trimmed(requests, entry) then
      if owner[2] ~= consumer then lost[#lost + 1] = i - 4 end
    elseif owner and owner[2] == consumer then
      -- JUSTID: the delivery count stays as it is
      redis.call('XCLAIM', requests, group, consumer, 0, entry, 'JUSTID')
    elseif owner then
      -- The other one counted this as the crash of a worker, which plainly lives: take that back.
      -- Delivery counts of what was handed back are one lower: taking it up raises them again.
      local least = is_handed_back(owner[2]) and 0 or 1
      redis.call('XCLAIM', requests, group, owner[2], 0, entry, 'IDLE', owner[3],
        'RETRYCOUNT', math.max(least, owner[4] - 1), 'JUSTID')
      lost[#lost + 1] = i - 4
    elseif not pending.err and exists(requests, entry) then
      -- Nobody owns it: the group was dropped and made again.
      redis.call('XCLAIM', requests, group, consumer, 0, entry, 'FORCE', 'JUSTID')
    end
  end
end

-- Registers this worker, and removes whoever has not been heard of for a lease; returns the longest lease, and why not.
local function register(registry, now)
  local lease = tonumber(ARGV[5])
  local ends = string.format('%.0f', now + holds_ms(lease))
  -- pcall: see workers.lua.  A write that memory cannot refuse comes first: the next ones are not refused then.
  redis.pcall('PEXPIRE', registry, holds_ms(lease), 'GT')
  local text = '{"lease_ms":' .. ARGV[5] .. ',"until_ms":' .. ends .. ',"models":' .. ARGV[6] .. '}'
  local reply = redis.pcall('HSET', registry, consumer, text)
  if type(reply) == 'table' and reply.err then return lease, reply.err end
  local workers, stale = registrations(registry, now)
  for _, name in ipairs(stale) do redis.call('HDEL', registry, name) end
  local longest = longest_lease(workers, lease)
  if redis.call('PTTL', registry) < holds_ms(longest) then redis.call('PEXPIRE', registry, holds_ms(longest)) end
  return longest
end

-- Be seen, and be there again where somebody has removed this consumer: before Redis 7.2 a blocking read does neither.
for i = 1, 3 do
  redis.pcall('XREADGROUP', 'GROUP', group, consumer, 'COUNT', 1, 'STREAMS', KEYS[i], LAST_ID)
end
local now = now_ms()
local longest, complaint = register(ARGV[4], now)
return {lost, sealed, now, longest, complaint or false}
