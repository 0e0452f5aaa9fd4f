-- What a run is replayed from: its events without the text of its models, and without what it has waited for.
-- Keys: events.
-- Arguments: cursor, "-" or an ID to go on after; page, events that are looked at.
-- Returns {next cursor ("": all has been seen), ID of the last event that was seen, {{ID, type, data}...}}
-- Changes nothing.
local LONGEST = 33554432  -- of one event: as JSON the longest result has no more, and others may write here
local found = redis.call('XRANGE', events, cursor == '-' and '-' or '(' .. cursor, '+', 'COUNT', page)
local told, last, size = {}, '', 0
for at, item in ipairs(found) do
  local kind = type_of(item)
  last = item[1]
  local is_of_run = kind ~= 'token' and kind ~= 'reasoning' and kind ~= 'queued'
  if is_of_run and not is_at_end(last) and size_of(item) <= LONGEST then
    told[#told + 1] = {last, kind, field(item, 'data') or ''}
    size = size + size_of(item)
  end
  if size > MOST_REPLY_BYTES and at < #found then return {last, last, told} end
end
return {#found == page and last or '', last, told}
