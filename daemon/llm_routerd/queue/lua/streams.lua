-- What the scripts know of streams; goes before each of them.
-- Producers may write to events streams (they cancel there), so all that stands in one may be anything.
local FINAL, FINAL_MS = '9007199254740991-0', 9007199254740991

-- Who owns what was handed back: for any worker, or for one that knows a model.
local HANDED_BACK, FOR_MODEL = 'handed-back', '^handed%-back:(.*)$'
local function is_handed_back(owner)
  return owner == HANDED_BACK or string.match(owner, FOR_MODEL) ~= nil
end

-- The value of one field of an entry.
local function field(item, name)
  local fields = item[2]
  for i = 1, #fields, 2 do
    if fields[i] == name then return fields[i + 1] end
  end
end

-- A reply of names and values in turn, by name.
local function as_table(flat)
  local info = {}
  for i = 1, #flat, 2 do info[flat[i]] = flat[i + 1] end
  return info
end

-- The type of an event; of one that others wrote there is a beginning.
local function type_of(item)
  return string.sub(field(item, 'type') or '', 1, 64)
end

-- What an entry holds as JSON.
local function data_of(item)
  local ok, data = pcall(cjson.decode, field(item, 'data') or '')
  return ok and type(data) == 'table' and data or {}
end

-- Whether an event ID is the final one's or beyond it, where only others write.
local function is_at_end(id)
  return tonumber(string.match(id, '^%d+')) >= FINAL_MS
end

-- Whether a number is smaller than another, both as the server writes them: they may be larger than Lua counts.
local function is_less(one, other)
  return #one < #other or (#one == #other and one < other)
end

-- Whether a stream ID is smaller than another.
local function is_before(one, other)
  local n, k = string.match(one, '(%d+)-(%d+)')
  local m, l = string.match(other, '(%d+)-(%d+)')
  return is_less(n, m) or (n == m and is_less(k, l))
end

-- What a lane answers; nil where its key is of another type: then no entry of ours stands there, or is pending.
local function ask_lane(...)
  local reply = redis.pcall(...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  if string.find(reply.err, 'WRONGTYPE', 1, true) then return nil end
  return redis.call(...)  -- says why
end

-- Whether a command was refused because its key is no stream; any other refusal says nothing of the key.
local function is_other_type(reply)
  return string.find(tostring(reply.err), 'wrong kind of value', 1, true) ~= nil
end

-- Whether XADD was refused because the stream's last ID is no smaller than the one to be added; it may lie beyond the
-- stream's last entry, where what stood there was deleted, and be the last one that there is.
local function is_passed(reply)
  local why = type(reply) == 'table' and tostring(reply.err or '') or ''
  return string.find(why, 'equal or smaller', 1, true) ~= nil
    or string.find(why, 'exhausted the last possible ID', 1, true) ~= nil
end

-- Whether an entry of a lane exists.  XCLAIM must not be asked: it drops from the pending entries what does not, and
-- then nobody knows any more that there was a request without an answer.
local function exists(requests, entry)
  local found = ask_lane('XRANGE', requests, entry, entry)
  return found ~= nil and #found > 0
end

-- Bytes of an entry's names and values.
local function size_of(item)
  local size = 0
  for _, part in ipairs(item[2]) do size = size + #part end
  return size
end

-- A reply ends with the entry that has made it longer: the server builds it whole, and others wait meanwhile.
local MOST_REPLY_BYTES = 16777216

-- What the event of attempt n says; nil where it is not there.
local function attempt_of(events, n)
  local item = redis.call('XRANGE', events, n .. '-0', n .. '-0')[1]
  return item and data_of(item)
end

-- The entry that an events stream belongs to, and its lane: those of the last attempt that names them.  The first one
-- does, and one whose entry took the place of another that was gone.  nil where none does.
-- Whoever may cancel may write any number of such events: they are not all looked at.
local MOST_ATTEMPTS = 200
local function owner_of(events)
  local entry, lane
  local n = 1
  local attempt = attempt_of(events, n)
  while attempt and n <= MOST_ATTEMPTS do
    if type(attempt.entry) == 'string' then entry, lane = attempt.entry, attempt.lane end
    n = n + 1
    attempt = attempt_of(events, n)
  end
  return entry, lane
end

-- Whether an entry that an events stream names waits in the lane that it names, as a request of this id.
local function is_waiting(lanes, entry, lane, id)
  local requests = type(lane) == 'string' and lanes[lane]
  if not requests or type(entry) ~= 'string' then return false end
  local found = redis.pcall('XRANGE', requests, entry, entry)
  if found.err or not found[1] then return false end
  return (field(found[1], 'id') or data_of(found[1]).id or entry) == id
end
