-- What the scripts know of streams; before a script goes what it uses.  A paragraph defines one thing.
-- Producers may write to events streams (they cancel there), so all that stands in one may be anything.

-- The model that an owner's entries were handed back for; nil: they were not, or for any worker.
local function model_of(owner)
  local prefix = HANDED_BACK .. ':'
  return string.sub(owner, 1, #prefix) == prefix and string.sub(owner, #prefix + 1) or nil
end

-- Whether an owner is no worker, but has what was handed back.
local function is_handed_back(owner)
  return owner == HANDED_BACK or model_of(owner) ~= nil
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

-- Whether a text can be the id of a request.
local function is_id(text)
  return type(text) == 'string' and #text <= 128 and string.find(text, '^[%w._:-]+$') ~= nil
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

-- Be done with an entry, and return what a script says of that.
local function settle(requests, entry, verdict, detail)
  ask_lane('XACK', requests, GROUP, entry)
  ask_lane('XDEL', requests, entry)
  return {verdict, detail}
end

-- PUBLISH an event as those who SUBSCRIBE get it.
local function publish(events, id, kind, data)
  redis.call('PUBLISH', events, '{"id":"' .. id .. '","type":"' .. kind .. '","data":' .. data .. '}')
end

-- Whether a command was refused because its key is no stream; any other refusal says nothing of the key.
local function is_other_type(reply)
  return string.find(tostring(reply.err), 'wrong kind of value', 1, true) ~= nil
end

-- Whether a reply of pcall is the server's refusal.
local function is_refusal(reply)
  return type(reply) == 'table' and reply.err ~= nil
end

-- Whether XADD was refused because the stream's last ID is no smaller than the one to be added; it may lie beyond the
-- stream's last entry, where what stood there was deleted, and be the last one that there is.
local function is_passed(reply)
  local why = type(reply) == 'table' and tostring(reply.err or '') or ''
  return string.find(why, 'equal or smaller', 1, true) ~= nil
    or string.find(why, 'exhausted the last possible ID', 1, true) ~= nil
end

-- Write events, {ID, type, data...}, in order; those that stand there already are passed over.  Returns what XADD returned
-- for the last one, a refusal of its ID included, or its first other refusal; nil for none.
local function write_events(events, words, publishes)
  local reply
  for i = 1, #words, 3 do
    reply = redis.pcall('XADD', events, 'NOMKSTREAM', words[i], 'type', words[i + 1], 'data', words[i + 2])
    if is_refusal(reply) then
      if not is_passed(reply) then return reply end
    elseif reply and publishes then
      publish(events, words[i], words[i + 1], words[i + 2])
    end
  end
  return reply
end

-- Write entries of the audit, {how many parts follow, name, value...}; returns why one was refused, else nil.
-- The stream is no declared key: a server whose ACL is older than it refuses the entries, and not the script.
local function write_audit(audit_key, audit_maxlen, audit)
  local at = 1
  while at <= #audit do
    local last = at + audit[at]
    local reply = redis.pcall('XADD', audit_key, 'MAXLEN', '~', audit_maxlen, '*', unpack(audit, at + 1, last))
    if is_refusal(reply) then return reply.err end
    at = last + 1
  end
end

-- Whether an entry of a lane exists.  XCLAIM must not be asked: it drops from the pending entries what does not, and
-- then nobody knows any more that there was a request without an answer.
local function exists(requests, entry)
  local found = ask_lane('XRANGE', requests, entry, entry)
  return found ~= nil and #found > 0
end

-- Make a consumer that is no worker the owner of an entry, which any worker, or one of those it is for, may take at
-- once.  That raises the delivery count again: it stays as it was, for this is no crash.
local function give_back(requests, entry, owner, deliveries)
  redis.call('XCLAIM', requests, GROUP, owner, 0, entry,
    'IDLE', HANDED_BACK_IDLE_MS, 'RETRYCOUNT', math.max(0, deliveries - 1), 'JUSTID')
end

-- What XINFO says of our group of a lane; nil: the lane or the group is not there, so that it will be made at 0 and all
-- is new, or the lane is of another type.
local function group_of(requests)
  if redis.call('EXISTS', requests) == 0 then return nil end
  for _, raw in ipairs(ask_lane('XINFO', 'GROUPS', requests) or {}) do
    local info = as_table(raw)
    if info.name == GROUP then return info end
  end
end

-- Whether an entry that exists is an orphan: the group has delivered it, and nobody owns it.  Redis delivers nothing
-- twice: who removes a dead consumer (XGROUP DELCONSUMER) drops what it had, and a group made at `$`, or moved on
-- (XGROUP SETID), passes over what stands before.
local function is_orphan(requests, entry, group)
  return not is_before(group['last-delivered-id'], entry)
    and #redis.call('XPENDING', requests, GROUP, entry, entry, 1) == 0
end

-- Bytes of an entry's names and values.
local function size_of(item)
  local size = 0
  for _, part in ipairs(item[2]) do size = size + #part end
  return size
end

-- How much of a long entry is searched.
local SEARCHED = 8192

-- What to call the request of an entry: its id where that is certain, else the entry's.
local function name_of(item)
  local told, data = field(item, 'id'), field(item, 'data')
  if not told and data then
    if #data <= SEARCHED then
      told = data_of(item).id
    else
      told = string.match(string.sub(data, 1, SEARCHED), '^%s*{%s*"id"%s*:%s*"([^"]+)"')
    end
  end
  return is_id(told) and told or item[1]
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

-- The server's Unix time in whole ms.
local function now_ms()
  local now = redis.call('TIME')
  return now[1] * 1000 + math.floor(now[2] / 1000)
end

-- Whether the server has stood still, or its clock has jumped, since something was asked for; nil: that does not matter.
local function is_late(asked_ms, late_ms)
  return asked_ms ~= nil and now_ms() - asked_ms > late_ms
end

-- Whether an entry that an events stream names waits in the lane that it names, as a request of this id.
local function is_waiting(lanes, entry, lane, id)
  local requests = type(lane) == 'string' and lanes[lane]
  if not requests or type(entry) ~= 'string' then return false end
  local found = redis.pcall('XRANGE', requests, entry, entry)
  if found.err or not found[1] then return false end
  return (field(found[1], 'id') or data_of(found[1]).id or entry) == id
end
