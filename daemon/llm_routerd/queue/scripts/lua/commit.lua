-- End one request: the final event, its TTL, the acknowledgement, the dead letter and the metrics, all or nothing.
-- Keys: lanes; letters, the stream of dead letters; metrics_stream, also a channel; streams, of the events that the final
--   one belongs to (may be none).
-- Arguments: entry; lane; consumer; is_begun, by this worker: else another entry may own the stream; under_way, the ID of
--   the last event that was sent before this one, "" if it is known to have been answered for; kind, data and ttl_ms of
--   the final event; publishes (PUBLISH as well); events_prefix, what the keys of events streams begin with; metrics, the
--   metrics event, "" for none; metrics_maxlen; audit_key, audit_maxlen; most_letters; most_letter_bytes, of all of them; last_words, {ID, type,
--   data...} that go before the final event; letter, the fields of the dead letter, none for none; audit: see `write_audit`.
-- Returns "committed" | "sealed" (another final event stands; 2nd value: its type) | "duplicate"
--       | "gap" (nothing was written: events that were sent before were refused, out of memory, and must come first)
--       | "unwritable" (nothing was done: the events streams take no final event, ever, and there is no dead letter)
-- A third value says why the dead letter was refused, where an event stands in its stead; a fourth how many older ones
-- had to go for it; a fifth why the audit was refused.
-- May be repeated after a lost reply: the final event that it wrote is recognised.  An answer has times and texts that no
-- other worker's has; an error has the same bytes from whoever makes it, so its stream gets a consumer group whose name
-- says who ended it.  Readers do not see it, and it goes when the stream goes.
local requests = lanes[lane]
local signature = kind == 'error' and consumer .. ' ' .. lane .. ' ' .. entry
-- What these functions need they are given: to close over it would be paid for at each call of the script.

-- Whether an events stream that has been begun is not this entry's, but of another, which still waits and is of this id.
local function is_anothers(events, entry, lane, lanes, id)
  local owner, its_lane = owner_of(events)
  if owner == entry and its_lane == lane then return false end
  return is_waiting(lanes, owner, its_lane, id)
end

-- Whether the final event of a stream was written by this very commit, whose reply was lost.
local function is_own(events, last, data, signature)
  if field(last, 'data') ~= data then return false end
  if not signature then return true end
  local groups = redis.pcall('XINFO', 'GROUPS', events)  -- pcall: an ACL may refuse it
  for _, raw in ipairs(groups.err and {} or groups) do
    if raw[2] == signature then return true end  -- {'name', its value, ...}
  end
  return false
end

-- Remove the oldest dead letters until they keep their bounds; returns how many went.
local function trim_letters(letters, most_letters, most_letter_bytes)
  local dropped = redis.call('XTRIM', letters, 'MAXLEN', most_letters)
  for _ = 1, 20 do
    local length = redis.call('XLEN', letters)
    local used = redis.pcall('MEMORY', 'USAGE', letters)  -- pcall: an ACL may refuse it
    if type(used) ~= 'number' or used <= most_letter_bytes or length < 2 then break end
    local keep = math.min(length - 1, math.floor(length * most_letter_bytes / used))
    dropped = dropped + redis.call('XTRIM', letters, 'MAXLEN', math.max(1, keep))
  end
  return dropped
end

-- Redis allocates a stream's last node at 4 KB, of which a short request fills an eighth: a copy has its true size.
-- All by pcall: nothing depends on it, and an ACL may refuse it.  A copy that stands there already is somebody's stream.
local function give_slack_back(events)
  if redis.call('XLEN', events) > 50 then return end  -- of one node; what is longer gains little
  local copy = events .. ':copy'
  if redis.pcall('COPY', events, copy) ~= 1 then return end
  local renamed = redis.pcall('RENAME', copy, events)
  if renamed.err then redis.pcall('DEL', copy) end
end

-- Which of the streams are open to this entry?
local open, verdict, detail = {}, nil, nil
local has_letter = #letter > 0
local kept = true  -- false: what is sealed is not for this entry, whose dead letter is still to be written
local is_foreign = false  -- a stream takes no final event, and has none
for _, events in ipairs(streams) do
  local found = redis.pcall('XREVRANGE', events, '+', '-', 'COUNT', 1)
  local last = found[1]
  if found.err and not is_other_type(found) then return found end
  if found.err then
    verdict, kept, is_foreign = verdict or 'sealed', false, true  -- the key is no stream: somebody else's
  elseif not last then
    open[#open + 1] = events
  elseif is_at_end(last[1]) then
    if redis.call('PTTL', events) < 0 then redis.call('PEXPIRE', events, ttl_ms) end
    last = redis.call('XRANGE', events, FINAL, FINAL)[1]
    if not last then
      verdict, kept, is_foreign = verdict or 'sealed', false, true
    else
      local waits = exists(requests, entry)
      if not waits and is_own(events, last, data, signature) then
        redis.call('PEXPIRE', events, ttl_ms)  -- WAIT waits for what its connection has written, and this one is new
        return settle(requests, entry, 'committed')
      end
      verdict, detail = verdict or 'sealed', type_of(last)
      -- A bad request of the same entry ID on another lane was first, with an answer of the same words.
      if waits and detail == 'error' then kept = false end
    end
  elseif is_begun then
    if under_way ~= '' and is_before(last[1], under_way) then
      redis.call('PEXPIRE', events, ttl_ms)  -- where nothing can be written this is refused, and keeps its turn
      return {'gap'}
    end
    open[#open + 1] = events
  elseif is_anothers(events, entry, lane, lanes, string.sub(events, #events_prefix + 1)) then
    verdict = verdict or 'duplicate'
  else
    open[#open + 1] = events
  end
end
if #streams > 0 and #open == 0 then
  if is_foreign and not has_letter then return {'unwritable'} end
  if kept or not has_letter then return settle(requests, entry, verdict, detail) end
end

-- The writes that memory can refuse come first: at maxmemory nothing has been acknowledged yet.
local reply = write_events(streams[1], last_words, publishes)
if is_refusal(reply) and not is_passed(reply) then return reply end  -- else: overtaken
local written, letter_lost, dropped = {}, nil, 0
for _, events in ipairs(open) do
  local added = redis.pcall('XADD', events, FINAL, 'type', kind, 'data', data)
  if is_refusal(added) then
    if not is_passed(added) then return added end
  else
    written[#written + 1] = events
    redis.call('PEXPIRE', events, ttl_ms)
    if signature then redis.pcall('XGROUP', 'CREATE', events, signature, '$') end  -- pcall: an ACL may refuse it
  end
end
if #open > 0 and #written == 0 and not has_letter then return {'unwritable'} end
if has_letter then
  -- Should these be refused for good, the letter must not stand: it would be written again with each try.
  ask_lane('XACK', requests, GROUP, '0-0')
  ask_lane('XDEL', requests, '0-0')
  local added = redis.pcall('XADD', letters, '*', unpack(letter))
  if is_refusal(added) then
    if #written == 0 then return added end
    letter_lost = added.err
  else
    dropped = trim_letters(letters, most_letters, most_letter_bytes)
  end
end
settle(requests, entry)
if metrics ~= '' then
  -- pcall: on a cluster the metrics key may lie in another slot, and no answer is lost for that
  redis.pcall('XADD', metrics_stream, 'MAXLEN', '~', metrics_maxlen, '*', 'data', metrics)
  redis.pcall('PUBLISH', metrics_stream, metrics)
end
for _, events in ipairs(written) do
  if publishes then publish(events, FINAL, kind, data) end
  give_slack_back(events)
end
local unaudited = write_audit(audit_key, audit_maxlen, audit)
if letter_lost or dropped > 0 or unaudited then
  return {'committed', false, letter_lost or false, dropped, unaudited}
end
return {'committed'}
