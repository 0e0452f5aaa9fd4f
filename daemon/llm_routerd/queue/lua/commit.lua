-- End one request: the final event, its TTL, the acknowledgement, the dead letter and the metrics, all or nothing.
-- KEYS  1-3 lanes (high, normal, low), 4 dead letters, 5 metrics stream,
--       6... events streams that get the final event (may be none)
-- ARGV  1 group, 2 entry, 3 type, 4 data, 5 TTL ms, 6 "1" to PUBLISH as well,
--       7 the lane's name, 8 "1" if this worker has begun it, else "": another entry may own the stream,
--       9 the ID of the last event that was sent before this one, "" if it is known to have been answered for,
--       10 metrics maxlen, 11 metrics channel, 12 metrics event, 13 what the keys of events streams begin with,
--       14 most dead letters, 15 most bytes of them, 16 consumer,
--       17 how many events go before the final one, then ID, type and data of each, then the fields of the dead letter
-- Returns "committed" | "sealed" (another final event stands; 2nd value: its type) | "duplicate"
--       | "gap" (nothing was done: events that were sent before were refused, out of memory, and must come first)
--       | "unwritable" (nothing was done: the events streams take no final event, ever, and there is no dead letter)
-- A third value says why the dead letter was refused, where an event stands in its stead; a fourth how many older ones
-- had to go for it.
-- May be repeated after a lost reply: the final event that it wrote is recognised.  An answer has times and texts that no
-- other worker's has; an error has the same bytes from whoever makes it, so its stream gets a consumer group whose name
-- says who ended it.  Readers do not see it, and it goes when the stream goes.
local LANE = {high = KEYS[1], normal = KEYS[2], low = KEYS[3]}
local requests, group, entry = LANE[ARGV[7]], ARGV[1], ARGV[2]
local EVENTS, WORDS = 6, 18  -- where these begin
local signature = ARGV[16] .. ' ' .. ARGV[7] .. ' ' .. entry

-- Whether a stream that has been begun is another entry's, which still waits and is of the same id.
local function is_anothers(events)
  local owner, its_lane = owner_of(events)
  if owner == entry and its_lane == ARGV[7] then return false end
  return is_waiting(LANE, owner, its_lane, string.sub(events, #ARGV[13] + 1))
end

-- Whether the final event of a stream was written by this very commit, whose reply was lost.
local function is_own(events, last)
  if field(last, 'data') ~= ARGV[4] then return false end
  if ARGV[3] ~= 'error' then return true end
  local groups = redis.pcall('XINFO', 'GROUPS', events)  -- pcall: an ACL may refuse it
  for _, raw in ipairs(groups.err and {} or groups) do
    if raw[2] == signature then return true end  -- {'name', its value, ...}
  end
  return false
end

local function settle(verdict, detail)
  ask_lane('XACK', requests, group, entry)
  ask_lane('XDEL', requests, entry)
  return {verdict, detail}
end

local function publish(events, id, kind, data)
  redis.call('PUBLISH', events, '{"id":"' .. id .. '","type":"' .. kind .. '","data":' .. data .. '}')
end

-- Remove the oldest dead letters until they keep their bounds; returns how many went.
local function trim_letters(letters, most, most_bytes)
  local dropped = redis.call('XTRIM', letters, 'MAXLEN', most)
  for _ = 1, 20 do
    local length = redis.call('XLEN', letters)
    local used = redis.pcall('MEMORY', 'USAGE', letters)  -- pcall: an ACL may refuse it
    if type(used) ~= 'number' or used <= most_bytes or length < 2 then break end
    local keep = math.min(length - 1, math.floor(length * most_bytes / used))
    dropped = dropped + redis.call('XTRIM', letters, 'MAXLEN', math.max(1, keep))
  end
  return dropped
end

-- Redis allocates a stream's last node at 4 KB, of which a short request fills an eighth: a copy has its true size.
-- All by pcall: nothing depends on it, and an ACL may refuse it.  A copy that stands there already is somebody's stream.
local MOST_EVENTS = 50  -- of one node; what is longer gains little
local function give_slack_back(events)
  if redis.call('XLEN', events) > MOST_EVENTS then return end
  local copy = events .. ':copy'
  if redis.pcall('COPY', events, copy) ~= 1 then return end
  local renamed = redis.pcall('RENAME', copy, events)
  if renamed.err then redis.pcall('DEL', copy) end
end

-- Which of the streams are open to this entry?
local open, verdict, detail = {}, nil, nil
local letter = WORDS + 3 * ARGV[17]
local kept = true  -- false: what is sealed is not for this entry, whose dead letter is still to be written
local is_foreign = false  -- a stream takes no final event, and has none
for i = EVENTS, #KEYS do
  local events = redis.pcall('XREVRANGE', KEYS[i], '+', '-', 'COUNT', 1)
  local last = events[1]
  if events.err and not is_other_type(events) then return events end
  if events.err then
    verdict, kept, is_foreign = verdict or 'sealed', false, true  -- the key is no stream: somebody else's
  elseif not last then
    open[#open + 1] = KEYS[i]
  elseif is_at_end(last[1]) then
    if redis.call('PTTL', KEYS[i]) < 0 then redis.call('PEXPIRE', KEYS[i], ARGV[5]) end
    last = redis.call('XRANGE', KEYS[i], FINAL, FINAL)[1]
    if not last then
      verdict, kept, is_foreign = verdict or 'sealed', false, true
    else
      local waits = exists(requests, entry)
      if not waits and is_own(KEYS[i], last) then return settle('committed') end
      verdict, detail = verdict or 'sealed', type_of(last)
      -- A bad request of the same entry ID on another lane was first, with an answer of the same words.
      if waits and detail == 'error' then kept = false end
    end
  elseif ARGV[8] ~= '' then
    if ARGV[9] ~= '' and is_before(last[1], ARGV[9]) then return {'gap'} end
    open[#open + 1] = KEYS[i]
  elseif is_anothers(KEYS[i]) then
    verdict = verdict or 'duplicate'
  else
    open[#open + 1] = KEYS[i]
  end
end
if #KEYS >= EVENTS and #open == 0 and letter > #ARGV and is_foreign then return {'unwritable'} end
if #KEYS >= EVENTS and #open == 0 and (kept or letter > #ARGV) then return settle(verdict, detail) end

-- The writes that memory can refuse come first: at maxmemory nothing has been acknowledged yet.
for i = WORDS, letter - 1, 3 do
  local reply = redis.pcall('XADD', KEYS[EVENTS], 'NOMKSTREAM', ARGV[i], 'type', ARGV[i + 1], 'data', ARGV[i + 2])
  if type(reply) == 'table' and reply.err then
    if not is_passed(reply) then return reply end  -- else: overtaken
  elseif reply and ARGV[6] == '1' then
    publish(KEYS[EVENTS], ARGV[i], ARGV[i + 1], ARGV[i + 2])
  end
end
local written, letter_lost, dropped = {}, nil, 0
for _, events in ipairs(open) do
  local reply = redis.pcall('XADD', events, FINAL, 'type', ARGV[3], 'data', ARGV[4])
  if type(reply) == 'table' and reply.err then
    if not is_passed(reply) then return reply end
  else
    written[#written + 1] = events
    redis.call('PEXPIRE', events, ARGV[5])
    if ARGV[3] == 'error' then redis.pcall('XGROUP', 'CREATE', events, signature, '$') end  -- pcall: an ACL may refuse it
  end
end
if #open > 0 and #written == 0 and letter > #ARGV then return {'unwritable'} end
if letter <= #ARGV then
  -- Should these be refused for good, the letter must not stand: it would be written again with each try.
  ask_lane('XACK', requests, group, '0-0')
  ask_lane('XDEL', requests, '0-0')
  local reply = redis.pcall('XADD', KEYS[4], '*', unpack(ARGV, letter))
  if type(reply) == 'table' and reply.err then
    if #written == 0 then return reply end
    letter_lost = reply.err
  else
    dropped = trim_letters(KEYS[4], ARGV[14], tonumber(ARGV[15]))
  end
end
settle()
if ARGV[12] ~= '' then
  -- pcall: on a cluster the metrics key may lie in another slot, and no answer is lost for that
  redis.pcall('XADD', KEYS[5], 'MAXLEN', '~', ARGV[10], '*', 'data', ARGV[12])
  redis.pcall('PUBLISH', ARGV[11], ARGV[12])
end
for _, events in ipairs(written) do
  if ARGV[6] == '1' then publish(events, FINAL, ARGV[3], ARGV[4]) end
  give_slack_back(events)
end
if letter_lost or dropped > 0 then return {'committed', false, letter_lost or false, dropped} end
return {'committed'}
