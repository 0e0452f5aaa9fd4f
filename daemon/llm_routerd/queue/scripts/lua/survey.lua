-- What there is to be seen of a shard at one look; changes nothing, and tells no prompt and no answer.
-- Keys: lanes; letters, the dead ones.
-- Arguments: registry, of the workers; events_prefix, before the id of a request; most, of the running requests of a
--   lane; most_bytes, of all that is read of them, after which no more are told.
-- Returns {ms, letters, {worker, what it has registered...}, {lane...}}; of each lane, the most urgent first,
--   {the ID of the entry that has waited longest; "": none waits, {running...}}; and of each running request
--   {id, entry, worker, ms since its last sign of life, deliveries, deployment, model, type of its last event,
--   {data of the tool calls that wait for a person's word...}, data of that event if it is `queued`, else ""}.
-- May be repeated.
local LONGEST_CALL, LONGEST_WAIT, EVENTS_PER_PAGE, MOST_PAGES = 16384, 4096, 8, 32
local OF_RUNS = {tool_call = true, confirmed = true, denied = true, tool_result = true, turn = true}
local left = most_bytes

-- What an event says of a tool call; of a long one without its arguments.
local function told_of(item, call)
  local data = field(item, 'data')
  if #data <= LONGEST_CALL then return data end
  local short = {name = call.name, turn = call.turn, args_sha256 = call.args_sha256, expires_at_ms = call.expires_at_ms}
  short.call_id = call.call_id
  data = cjson.encode(short)
  return #data <= LONGEST_CALL and data or nil
end

-- The tool calls of a run's last turn that no person has answered yet, the oldest first; its `turn` stands after them.
local function unanswered(events)
  local found, answered, before = {}, {}, '+'
  for _ = 1, MOST_PAGES do
    local page = redis.call('XREVRANGE', events, before, '-', 'COUNT', EVENTS_PER_PAGE)
    for _, item in ipairs(page) do
      left = left - size_of(item)
      local kind, data = type_of(item), data_of(item)
      if kind == 'tool_call' then
        local told = data.confirm == true and not answered[tostring(data.call_id)] and told_of(item, data)
        if told then table.insert(found, 1, told) end
      elseif kind == 'confirmed' or kind == 'denied' or kind == 'tool_result' then
        answered[tostring(data.call_id)] = true
      elseif kind ~= 'turn' then
        return found
      end
    end
    if #page < EVENTS_PER_PAGE or left <= 0 then break end
    before = '(' .. page[#page][1]
  end
  return found
end

-- What the events of a request tell of it: deployment, model, type of the last event, tool calls, what it waits for.
local function progress_of(events)
  local last = redis.pcall('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]  -- pcall: the key may be no stream
  if not last then return '', '', '', {}, '' end
  left = left - size_of(last)
  local kind = type_of(last)
  local attempt = not is_at_end(last[1]) and attempt_of(events, string.match(last[1], '^%d+')) or {}
  local calls = OF_RUNS[kind] and unanswered(events) or {}
  local waits = kind == 'queued' and field(last, 'data') or ''
  if #waits > LONGEST_WAIT then waits = '' end
  return tostring(attempt.deployment or ''), tostring(attempt.model or ''), kind, calls, waits
end

-- What stands in a lane.
local function look(requests)
  local group = group_of(requests)
  local after = group and '(' .. group['last-delivered-id'] or '-'
  local next_one = (ask_lane('XRANGE', requests, after, '+', 'COUNT', 1) or {})[1]
  local oldest, running = next_one and next_one[1] or '', {}
  local pending = group and redis.call('XPENDING', requests, GROUP, '-', '+', most) or {}
  for at = #pending, 1, -1 do
    if is_handed_back(pending[at][2]) then oldest = pending[at][1] end
  end
  for _, owned in ipairs(pending) do
    if left <= 0 then break end
    if not is_handed_back(owned[2]) then
      local item = redis.call('XRANGE', requests, owned[1], owned[1])[1]
      left = left - (item and size_of(item) or 0)
      local id = item and name_of(item) or owned[1]
      local deployment, model, kind, calls, waits = progress_of(events_prefix .. id)
      running[#running + 1] = {id, owned[1], owned[2], owned[3], owned[4], deployment, model, kind, calls, waits}
    end
  end
  return {oldest, running}
end

local found = {}
for _, lane in ipairs(LANES) do found[#found + 1] = look(lanes[lane]) end
local count = redis.pcall('XLEN', letters)
local workers = redis.pcall('HGETALL', registry)
return {now_ms(), is_refusal(count) and 0 or count, is_refusal(workers) and {} or workers, found}
