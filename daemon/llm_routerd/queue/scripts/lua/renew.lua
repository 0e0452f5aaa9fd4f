-- Renew the leases of all entries that this worker has in flight, find the requests that have been sealed, and tell the
-- other workers of this one.
-- Keys: lanes; streams, the events of each entry.
-- Arguments: consumer; ttl_ms; registry, of the workers; lease_ms; models, a JSON list of those that this worker knows;
--   entries, {lane, entry...}, in the order of their streams.
-- Returns {lost, sealed, ms, lease, complaint}:
--   lost: {position (from 0)...} of those that another consumer owns now;
--   sealed: {position (from 0)...} of those that have been ended;
--   ms: the server's time;
--   lease: the longest of all living workers, in ms;
--   complaint: why this worker cannot be registered; nil: it is.
-- An entry that was trimmed meanwhile cannot be claimed again: it stays pending, and grows old.  That its worker lives
-- is then told by the consumer, which is seen with each renewal.
-- May be repeated after a lost reply: it says the same again.
local LAST_ID = '18446744073709551615-0'
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

for i, events in ipairs(streams) do
  local requests, entry = lanes[entries[2 * i - 1]], entries[2 * i]
  local last = redis.pcall('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]  -- pcall: the key may be no stream
  if last and is_at_end(last[1]) then
    sealed[#sealed + 1] = i - 1
  else
    if last then redis.call('PEXPIRE', events, ttl_ms) end
    local pending = redis.pcall('XPENDING', requests, GROUP, entry, entry, 1)
    local owner = not pending.err and pending[1] or nil
    if owner and is_trimmed(requests, entry) then
      if owner[2] ~= consumer then lost[#lost + 1] = i - 1 end
    elseif owner and owner[2] == consumer then
      -- JUSTID: the delivery count stays as it is
      redis.call('XCLAIM', requests, GROUP, consumer, 0, entry, 'JUSTID')
    elseif owner then
      -- The other one counted this as the crash of a worker, which plainly lives: take that back.
      -- Delivery counts of what was handed back are one lower: taking it up raises them again.
      local least = is_handed_back(owner[2]) and 0 or 1
      redis.call('XCLAIM', requests, GROUP, owner[2], 0, entry, 'IDLE', owner[3],
        'RETRYCOUNT', math.max(least, owner[4] - 1), 'JUSTID')
      lost[#lost + 1] = i - 1
    elseif not pending.err and exists(requests, entry) then
      -- Nobody owns it: the group was dropped and made again.
      redis.call('XCLAIM', requests, GROUP, consumer, 0, entry, 'FORCE', 'JUSTID')
    end
  end
end

-- Registers this worker, and removes whoever has not been heard of for a lease; returns the longest lease, and why not.
local function register(now)
  local ends = string.format('%.0f', now + holds_ms(lease_ms))
  -- pcall: see workers.lua.  A write that memory cannot refuse comes first: the next ones are not refused then.
  redis.pcall('PEXPIRE', registry, holds_ms(lease_ms), 'GT')
  local text = '{"lease_ms":' .. lease_ms .. ',"until_ms":' .. ends .. ',"models":' .. models .. '}'
  local reply = redis.pcall('HSET', registry, consumer, text)
  if is_refusal(reply) then return lease_ms, reply.err end
  local workers, stale = registrations(registry, now)
  for _, name in ipairs(stale) do redis.call('HDEL', registry, name) end
  local longest = longest_lease(workers, lease_ms)
  if redis.call('PTTL', registry) < holds_ms(longest) then redis.call('PEXPIRE', registry, holds_ms(longest)) end
  return longest
end

-- Be seen, and be there again where somebody has removed this consumer: before Redis 7.2 a blocking read does neither.
for _, requests in pairs(lanes) do
  redis.pcall('XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', 1, 'STREAMS', requests, LAST_ID)
end
local now = now_ms()
local longest, complaint = register(now)
return {lost, sealed, now, longest, complaint or false}
