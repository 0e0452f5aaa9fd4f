-- Renew the leases of all entries that this worker has in flight, and find the requests that have been sealed.
-- KEYS  1-3 lanes (high, normal, low), 4... events stream of each entry
-- ARGV  1 group, 2 consumer, 3 TTL ms, then for each entry: lane number (1-3), entry
-- Returns {lost..., } as {{position...}, {position...}, ms}: positions (from 0) of the lost and of the sealed ones,
-- and the server's time in ms.  Lost: another consumer owns it now.
-- An entry that was trimmed meanwhile cannot be claimed again: it stays pending, and grows old.  That its worker lives
-- is then told by the consumer, which was seen just now.
local HANDED_BACK = 'handed-back'  -- its delivery counts are one lower: taking it up raises them again
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
  local events, requests, entry = KEYS[i], KEYS[tonumber(ARGV[2 * i - 4])], ARGV[2 * i - 3]
  local last = redis.pcall('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]  -- pcall: the key may be no stream
  if last and is_at_end(last[1]) then
    sealed[#sealed + 1] = i - 4
  else
    if last then redis.call('PEXPIRE', events, ARGV[3]) end
    local pending = redis.pcall('XPENDING', requests, group, entry, entry, 1)
    local owner = not pending.err and pending[1] or nil
    if owner and is_trimmed(requests, entry) then
      if owner[2] == consumer then
        redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', 1, 'STREAMS', requests, LAST_ID)  -- to be seen
      else
        lost[#lost + 1] = i - 4
      end
    elseif owner and owner[2] == consumer then
      -- JUSTID: the delivery count stays as it is
      redis.call('XCLAIM', requests, group, consumer, 0, entry, 'JUSTID')
    elseif owner then
      -- The other one counted this as the crash of a worker, which plainly lives: take that back.
      local least = owner[2] == HANDED_BACK and 0 or 1
      redis.call('XCLAIM', requests, group, owner[2], 0, entry, 'IDLE', owner[3],
        'RETRYCOUNT', math.max(least, owner[4] - 1), 'JUSTID')
      lost[#lost + 1] = i - 4
    elseif not pending.err and exists(requests, entry) then
      -- Nobody owns it: the group was dropped and made again.
      redis.call('XCLAIM', requests, group, consumer, 0, entry, 'FORCE', 'JUSTID')
    end
  end
end
local now = redis.call('TIME')
return {lost, sealed, now[1] * 1000 + math.floor(now[2] / 1000)}
