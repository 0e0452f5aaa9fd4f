-- What the scripts know of runs with tools.

-- The largest number that an ID of a stream can have, before the dash and after it.
local LARGEST = '18446744073709551615'

-- Whether an entry is this consumer's to answer for, and its events stream goes on from where it has seen it; else why
-- not: "lost", "sealed", "stale" (others have written there: look again), "done" (this very script has written it),
-- "unwritable" (no event can follow what others have written).
-- Returns that, or nil.
local function hindrance(events, requests, entry, consumer, after, last_word)
  local pending = (ask_lane('XPENDING', requests, GROUP, entry, entry, 1) or {})[1]
  if pending and pending[2] ~= consumer then return 'lost' end
  if not pending and not exists(requests, entry) then return 'lost' end  -- else nobody owns it: see `forgive`
  local found = redis.pcall('XREVRANGE', events, '+', '-', 'COUNT', 1)
  local last = not found.err and found[1]
  if not last then return 'lost' end
  if is_at_end(last[1]) then return 'sealed' end
  if last_word and last[1] == last_word then return 'done' end
  if after ~= last[1] and not is_before(last[1], after) then return 'stale' end
  -- Others have written so late an ID that none of ours may follow: that fails before a call is made, and not after.
  if last_word and is_less(LARGEST, string.match(last_word, '%d+$')) then return 'unwritable' end
end

-- A run rests, or goes on: whatever its worker died of before, it was not this.  The lease begins anew, also where the
-- group was dropped and made again, or its consumer deleted, so that nobody owns it.
local function forgive(requests, entry, consumer)
  if exists(requests, entry) then
    redis.call('XCLAIM', requests, GROUP, consumer, 0, entry, 'RETRYCOUNT', 1, 'FORCE', 'JUSTID')
  end
end

-- Keep the streams that a run hears from, for as long as it waits and a while beyond: they exist from its first call
-- on, so that whoever answers need not see to their end.
local function keep_ears(inbox, consent, keep_ms)
  for _, stream in ipairs({inbox, consent}) do
    redis.pcall('XGROUP', 'CREATE', stream, GROUP, '$', 'MKSTREAM')  -- pcall: it is there, or no stream
    redis.pcall('PEXPIRE', stream, keep_ms)
  end
end

-- Put a call on its tool's stream, and say where in the event that tells of it.
local function send_call(stream, call, data)
  local id = redis.call('XADD', stream, '*', 'call', call)
  return string.sub(data, 1, -2) .. ',"entry":"' .. id .. '"}'
end

-- Write a run's events, {ID, type, data, stream, call...}: those that have a call put it on that stream first.
-- `streams` are the keys; `stream` is the number of one, "" for none.
local function write_run(events, streams, words, publishes)
  for i = 1, #words, 5 do
    local data = words[i + 2]
    if words[i + 3] ~= '' then data = send_call(streams[tonumber(words[i + 3])], words[i + 4], data) end
    redis.call('XADD', events, words[i], 'type', words[i + 1], 'data', data)
    if publishes then publish(events, words[i], words[i + 1], data) end
  end
end

-- Which of these streams cannot take a call, by number; nil: each can.  One that has given the last ID that there is
-- takes nothing ever again.
local function unusable(streams)
  for number, stream in ipairs(streams) do
    local info = redis.call('EXISTS', stream) == 1 and redis.pcall('XINFO', 'STREAM', stream) or {}
    if info.err or as_table(info)['last-generated-id'] == LARGEST .. '-' .. LARGEST then return number end
  end
end

-- Whether somebody who reads a stream has been given an entry of it.
local function is_taken(stream, id)
  if not exists(stream, id) then return true end
  for _, raw in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    if not is_before(as_table(raw)['last-delivered-id'], id) then return true end
  end
  return false
end

-- The events of a run from one ID to another, {{ID, data}...}: what was written, and where the calls are.
local function standing(events, first, last)
  local found = {}
  for _, item in ipairs(redis.call('XRANGE', events, first, last)) do
    found[#found + 1] = {item[1], field(item, 'data') or ''}
  end
  return found
end
