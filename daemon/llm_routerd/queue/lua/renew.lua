-- Renew the leases of all entries that this worker has in flight, and find the requests that have been sealed.
-- KEYS  1-3 lanes (high, normal, low), 4... events stream of each entry
-- ARGV  1 group, 2 consumer, 3 TTL ms, then for each entry: lane number (1-3), entry
-- Returns {lost..., } as {{position...}, {position...}, ms}: positions (from 0) of the lost and of the sealed ones,
-- and the server's time in ms.  Lost: another consumer owns it now.
local FINAL_MS = 9007199254740991
local HANDED_BACK = 'handed-back'  -- its delivery counts are one lower: taking it up raises them again
local group, consumer = ARGV[1], ARGV[2]
local lost, sealed = {}, {}
for i = 4, #KEYS do
  local events, requests, entry = KEYS[i], KEYS[tonumber(ARGV[2 * i - 4])], ARGV[2 * i - 3]
  local last = redis.pcall('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]  -- pcall: the key may be no stream
  if last and tonumber(string.match(last[1], '^%d+')) >= FINAL_MS then
    sealed[#sealed + 1] = i - 4
  else
    if last then redis.call('PEXPIRE', events, ARGV[3]) end
    local pending = redis.pcall('XPENDING', requests, group, entry, entry, 1)
    local owner = not pending.err and pending[1] or nil
    if owner and owner[2] == consumer then
      -- JUSTID: the delivery count stays as it is
      redis.call('XCLAIM', requests, group, consumer, 0, entry, 'JUSTID')
    elseif owner then
      -- The other one counted this as the crash of a worker, which plainly lives: take that back.
      local least = owner[2] == HANDED_BACK and 0 or 1
      redis.call('XCLAIM', requests, group, owner[2], 0, entry, 'IDLE', owner[3],
        'RETRYCOUNT', math.max(least, owner[4] - 1), 'JUSTID')
      lost[#lost + 1] = i - 4
    elseif not pending.err and #redis.call('XRANGE', requests, entry, entry) > 0 then
      -- Nobody owns it: the group was dropped and made again.
      redis.call('XCLAIM', requests, group, consumer, 0, entry, 'FORCE', 'JUSTID')
    end
  end
end
local now = redis.call('TIME')
return {lost, sealed, now[1] * 1000 + math.floor(now[2] / 1000)}
