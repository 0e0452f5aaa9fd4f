-- Tell that a request waits for a slot of a box: an event behind the last one, under the number of its attempt.
-- Keys: events; lanes.
-- Arguments: consumer; entry; lane; is_new, or claimed from another worker; deliveries, of the entry; ttl_ms; data, of the
--   event (`at_ms` is added); publishes (PUBLISH as well); makes: the stream may be made, for no attempt of this worker
--   stands there.
-- Returns "told", or why nothing was written: "lost" | "sealed" | "foreign" (the stream is another entry's) | "begun" (an
--   attempt of this delivery is under way) | "gone" (the stream has expired) | "unwritable"
-- Nothing depends on it, so what the server refuses is no error: out of memory, too, nobody waits until this is written.
-- May be repeated after a lost reply: what it wrote is recognised, and nothing is written into what has begun since.

-- Whoever was thought dead may go on writing until the next attempt.  Its words are refused from here on, all of them:
-- were this to take the ID of one, that one would be missing from a text that goes on.
local TAKEN_OVER = '100000000000000'
local requests = lanes[lane]
local pending = redis.pcall('XPENDING', requests, GROUP, entry, entry, 1)  -- pcall: the lane or its group may be gone
local owned = not pending.err and pending[1]
if not owned or owned[2] ~= consumer then return 'lost' end

local found = redis.pcall('XREVRANGE', events, '+', '-', 'COUNT', 1)
if found.err then return 'unwritable' end
local last = found[1]
if not last and not makes then return 'gone' end
local id, told = '0-1', string.sub(data, 1, -2)
if last then
  if is_at_end(last[1]) then return 'sealed' end
  local number, seq = string.match(last[1], '^(%d+)-(%d+)$')
  local kind = type_of(last)
  if number ~= '0' then
    local owner, its_lane = owner_of(events)
    if owner ~= entry or its_lane ~= lane then return 'foreign' end
    local attempt = attempt_of(events, number) or {}
    if attempt.consumer == consumer and attempt.delivery == deliveries then
      if kind == 'attempt' or kind == 'token' or kind == 'reasoning' then return 'begun' end
    elseif is_new then
      return 'foreign'  -- the group was made again: `begin` gives the entry back to a worker that may well be alive
    elseif is_less(seq, TAKEN_OVER) then
      seq = TAKEN_OVER
    end
  end
  if kind == 'queued' and string.sub(field(last, 'data') or '', 1, #told) == told then return 'told' end
  if #seq > 15 then return 'unwritable' end  -- others have written there; Lua counts no further
  id = number .. '-' .. string.format('%.0f', seq + 1)
end
data = told .. ',"at_ms":' .. string.format('%.0f', now_ms()) .. '}'
if is_refusal(redis.pcall('XADD', events, id, 'type', 'queued', 'data', data)) then return 'unwritable' end
redis.call('PEXPIRE', events, ttl_ms)
if publishes then publish(events, id, 'queued', data) end
return 'told'
