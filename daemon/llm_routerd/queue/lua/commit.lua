-- End one request: the final event, its TTL, the acknowledgement, the dead letter and the metrics, all or nothing.
-- KEYS  1 requests lane, 2 dead letters, 3 metrics stream, 4... events streams that get the final event (may be none)
-- ARGV  1 group, 2 entry, 3 type, 4 data, 5 TTL ms, 6 "1" to PUBLISH as well,
--       7 "" if this worker has begun it, else the lane's name: another entry may own the stream,
--       8 metrics maxlen, 9 metrics channel, 10 metrics event, 11... fields of the dead letter
-- Returns "committed" | "sealed" (another final event stands; 2nd value: its type) | "duplicate"
-- May be repeated after a lost reply: the final event that it wrote is recognised.
local FINAL = '9007199254740991-0'
local requests, group, entry = KEYS[1], ARGV[1], ARGV[2]

local function field(item, name)
  local fields = item[2]
  for i = 1, #fields, 2 do
    if fields[i] == name then return fields[i + 1] end
  end
end

local function settle(verdict, detail)
  redis.call('XACK', requests, group, entry)
  redis.call('XDEL', requests, entry)
  return {verdict, detail}
end

-- Which of the streams are open to this entry?
local open, verdict, detail = {}, nil, nil
for i = 4, #KEYS do
  local last = redis.call('XREVRANGE', KEYS[i], '+', '-', 'COUNT', 1)[1]
  if not last then
    open[#open + 1] = KEYS[i]
  elseif last[1] == FINAL then
    if redis.call('PTTL', KEYS[i]) < 0 then redis.call('PEXPIRE', KEYS[i], ARGV[5]) end
    if field(last, 'data') == ARGV[4] then return settle('committed') end
    verdict, detail = verdict or 'sealed', field(last, 'type')
  elseif ARGV[7] == '' then
    open[#open + 1] = KEYS[i]
  else
    local head = redis.call('XRANGE', KEYS[i], '-', '+', 'COUNT', 1)[1]
    local ok, data = pcall(cjson.decode, field(head, 'data') or '')
    if ok and type(data) == 'table' and data.entry == entry and data.lane == ARGV[7] then
      open[#open + 1] = KEYS[i]
    else
      verdict = verdict or 'duplicate'
    end
  end
end
if #KEYS > 3 and #open == 0 then return settle(verdict, detail) end

-- The writes that memory can refuse come first: at maxmemory nothing has been acknowledged yet.
for _, events in ipairs(open) do
  redis.call('XADD', events, FINAL, 'type', ARGV[3], 'data', ARGV[4])
  redis.call('PEXPIRE', events, ARGV[5])
end
if #ARGV > 10 then redis.call('XADD', KEYS[2], '*', unpack(ARGV, 11)) end
settle()
if ARGV[10] ~= '' then
  -- pcall: on a cluster the metrics key may lie in another slot, and no answer is lost for that
  redis.pcall('XADD', KEYS[3], 'MAXLEN', '~', ARGV[8], '*', 'data', ARGV[10])
  redis.pcall('PUBLISH', ARGV[9], ARGV[10])
end
if ARGV[6] == '1' then
  local message = '{"id":"' .. FINAL .. '","type":"' .. ARGV[3] .. '","data":' .. ARGV[4] .. '}'
  for _, events in ipairs(open) do redis.call('PUBLISH', events, message) end
end
return {'committed'}
