-- Is there a request of this id in a lane?  Looks at a page of it, the newest entries first, and changes nothing.
-- Keys: requests, the lane.
-- Arguments: before, "+" or "(entry" to go on before that; request_id; most, of entries; most_bytes, after which the page
--   is over.
-- Returns {1 if it was found, where to go on ("": all has been seen), {the ids of those that were looked at...}}
-- May be repeated.  Entries are read one by one: a producer may have added large ones, and no more than one of them is copied here.
-- Beyond LONGEST JSON is not parsed, and its beginning alone is searched.
local LONGEST = 2097152

-- By what one finds quickly, which may be the id of a tool and not of the request.
local function is_likely(item)
  local own, data = field(item, 'id'), field(item, 'data')
  if own or not data then return (own or item[1]) == request_id end
  return (string.match(string.sub(data, 1, SEARCHED), '"id"%s*:%s*"([%w._:-]+)"') or item[1]) == request_id
end

-- An id may be written with escapes (`\u0061` for `a`): then it does not stand in the text.
local function is_it(item)
  local data = field(item, 'data')
  if not data or #data > LONGEST then return is_likely(item) end
  if field(item, 'id') == request_id then return true end
  local may_be = request_id == item[1] or string.find(data, request_id, 1, true) or string.find(data, '\\u00[2-7]')
  return may_be and (data_of(item).id or item[1]) == request_id
end

local ids, bytes = {}, 0
for _ = 1, most do
  local item = redis.call('XREVRANGE', requests, before, '-', 'COUNT', 1)[1]
  if not item then return {0, '', ids} end
  if is_it(item) then return {1, '', ids} end
  ids[#ids + 1] = name_of(item)
  bytes = bytes + size_of(item)
  before = '(' .. item[1]
  if bytes > most_bytes then break end
end
return {0, before, ids}
