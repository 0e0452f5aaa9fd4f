-- End one request: the final event, its TTL, the acknowledgement, the dead letter and the metrics, all or nothing.
-- KEYS  1 requests lane, 2 dead letters, 3 metrics stream, 4... events streams that get the final event (may be none)
-- ARGV  1 group, 2 entry, 3 type, 4 data, 5 TTL ms, 6 "1" to PUBLISH as well,
--       7 "" if this worker has begun it, else the lane's name: another entry may own the stream,
--       8 the ID of the last event that was sent before this one, "" if it is known to have been answered for,
--       9 metrics maxlen, 10 metrics channel, 11 metrics event,
--       12 how many events go before the final one, then ID, type and data of each, then the fields of the dead letter
-- Returns "committed" | "sealed" (another final event stands; 2nd value: its type) | "duplicate"
--       | "gap" (nothing was done: events that were sent before were refused, out of memory, and must come first)
-- May be repeated after a lost reply: the final event that it wrote is recognised.
local requests, group, entry = KEYS[1], ARGV[1], ARGV[2]

local function settle(verdict, detail)
  redis.call('XACK', requests, group, entry)
  redis.call('XDEL', requests, entry)
  return {verdict, detail}
end

local function publish(events, id, kind, data)
  redis.call('PUBLISH', events, '{"id":"' .. id .. '","type":"' .. kind .. '","data":' .. data .. '}')
end

-- Which of the streams are open to this entry?
local open, verdict, detail = {}, nil, nil
local letter = 13 + 3 * ARGV[12]
local kept = true  -- false: what is sealed is not for this entry, whose dead letter is still to be written
for i = 4, #KEYS do
  local events = redis.pcall('XREVRANGE', KEYS[i], '+', '-', 'COUNT', 1)
  local last = events[1]
  if events.err then
    verdict, kept = verdict or 'sealed', false  -- the key is no stream: somebody else's
  elseif not last then
    open[#open + 1] = KEYS[i]
  elseif last[1] == FINAL then
    if redis.call('PTTL', KEYS[i]) < 0 then redis.call('PEXPIRE', KEYS[i], ARGV[5]) end
    local waits = exists(requests, entry)
    if not waits and field(last, 'data') == ARGV[4] then return settle('committed') end
    verdict, detail = verdict or 'sealed', field(last, 'type')
    -- A bad request of the same entry ID on another lane was first, with an answer of the same words.
    if waits and detail == 'error' then kept = false end
  elseif ARGV[7] == '' then
    if ARGV[8] ~= '' and is_before(last[1], ARGV[8]) then return {'gap'} end
    open[#open + 1] = KEYS[i]
  else
    local owner, its_lane = owner_of(KEYS[i])
    if owner == entry and its_lane == ARGV[7] then
      open[#open + 1] = KEYS[i]
    else
      verdict = verdict or 'duplicate'
    end
  end
end
if #KEYS > 3 and #open == 0 and (kept or letter > #ARGV) then return settle(verdict, detail) end

-- The writes that memory can refuse come first: at maxmemory nothing has been acknowledged yet.
for i = 13, letter - 1, 3 do
  local reply = redis.pcall('XADD', KEYS[4], 'NOMKSTREAM', ARGV[i], 'type', ARGV[i + 1], 'data', ARGV[i + 2])
  if type(reply) == 'table' and reply.err then
    if not string.find(tostring(reply.err), 'equal or smaller', 1, true) then return reply end  -- else: overtaken
  elseif reply and ARGV[6] == '1' then
    publish(KEYS[4], ARGV[i], ARGV[i + 1], ARGV[i + 2])
  end
end
for _, events in ipairs(open) do
  redis.call('XADD', events, FINAL, 'type', ARGV[3], 'data', ARGV[4])
  redis.call('PEXPIRE', events, ARGV[5])
end
if letter <= #ARGV then redis.call('XADD', KEYS[2], '*', unpack(ARGV, letter)) end
settle()
if ARGV[11] ~= '' then
  -- pcall: on a cluster the metrics key may lie in another slot, and no answer is lost for that
  redis.pcall('XADD', KEYS[3], 'MAXLEN', '~', ARGV[9], '*', 'data', ARGV[11])
  redis.pcall('PUBLISH', ARGV[10], ARGV[11])
end
if ARGV[6] == '1' then
  for _, events in ipairs(open) do publish(events, FINAL, ARGV[3], ARGV[4]) end
end
return {'committed'}
