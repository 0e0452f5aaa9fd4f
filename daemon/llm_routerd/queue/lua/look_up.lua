-- Is there a request of this id in a lane?  Looks at a page of it, the newest entries first, and changes nothing.
-- KEYS  1 lane
-- ARGV  1 "+", or "(entry" to go on before that, 2 the id, 3 most entries, 4 after so many bytes the page is over
-- Returns {1 if it was found, where to go on ("": all has been seen), {the ids of those that were looked at...}}
-- Entries are read one by one: a producer may have added large ones, and no more than one of them is copied here.
local lane, before, id, most_entries, most_bytes = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local SEARCHED, LONGEST = 8192, 2097152  -- beyond the latter JSON is not parsed, and its beginning alone is searched

local function id_of(item)
  local own, data = field(item, 'id'), field(item, 'data')
  if own or not data then return own or item[1] end
  return string.match(string.sub(data, 1, SEARCHED), '"id"%s*:%s*"([%w._:-]+)"') or item[1]
end

-- `id_of` is quick, and may take the id of a tool for that of the request.
local function is_it(item, likely)
  local data = field(item, 'data')
  if not data or #data > LONGEST then return likely == id end
  if field(item, 'id') == id then return true end
  if id ~= item[1] and not string.find(data, id, 1, true) then return false end
  return (data_of(item).id or item[1]) == id
end

local ids, bytes = {}, 0
for _ = 1, most_entries do
  local item = redis.call('XREVRANGE', lane, before, '-', 'COUNT', 1)[1]
  if not item then return {0, '', ids} end
  local likely = id_of(item)
  if is_it(item, likely) then return {1, '', ids} end
  ids[#ids + 1] = likely
  for _, part in ipairs(item[2]) do bytes = bytes + #part end
  before = '(' .. item[1]
  if bytes > most_bytes then break end
end
return {0, before, ids}
