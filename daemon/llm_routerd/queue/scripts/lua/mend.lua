-- Make streams anew whose IDs run ahead of the server's clock.
-- XADD takes any ID.  After one far ahead all later ones lie ahead as well, and after the last possible one the stream
-- takes nothing any more, also when it is empty.  XSETID would be simpler, and is refused: it does not go below an ID
-- that was deleted, as each answered request's is.  So the stream goes and comes back, in this one step, with its
-- groups, their consumers and all that is pending.  What is sound keeps its ID; what lies ahead gets one of now.
-- Keys: streams.
-- Arguments: ahead_ms, how far ahead is too far; most, the entries, and most_bytes, the bytes, of one to be made anew;
--   lane_count, how many of the streams, the first ones, are lanes.
-- Returns {{position (from 0), verdict, how many were moved, the last ID}...} of those that run ahead; verdict:
--   "mended"
--   "busy": a worker has an entry that lies ahead, or one that was trimmed away.  What is under way under an ID keeps
--           it, or its answer would be asked for twice; the worker that is given such an entry hands it back first
--   "large": it would hold up the server too long; it shrinks, or nobody can add to it anyway
--   "denied": the ACL would refuse a part of it half way
-- May be repeated after a lost reply: what was mended does not run ahead any more, and is not told again.
-- Blocked readers find the stream and its group again; some servers tell them that it was gone for a moment.
local UNPACKED = 7000  -- of what Lua can hand to a command
local DECODED = 65536  -- longer JSON is not parsed here
local now = now_ms()
local limit = string.format('%.0f-0', now + ahead_ms)

local function is_ahead(id) return not is_before(id, limit) end

-- Whether a stream runs ahead; its first and last entries may be large, so they are not looked at without need.
local function runs_ahead(key)
  local found = redis.pcall('XRANGE', key, limit, '+', 'COUNT', 1)
  if found.err then return false end  -- a key of another type
  if #found > 0 then return true end
  local groups = redis.pcall('XINFO', 'GROUPS', key)
  if groups.err then return false end  -- no such key
  for _, raw in ipairs(groups) do
    if is_ahead(as_table(raw)['last-delivered-id']) then return true end
  end
  return redis.call('XLEN', key) == 0 and is_ahead(as_table(redis.call('XINFO', 'STREAM', key))['last-generated-id'])
end

local function groups_of(key)
  local groups = {}
  for _, raw in ipairs(redis.call('XINFO', 'GROUPS', key)) do
    local each = as_table(raw)
    groups[#groups + 1] = each
  end
  return groups
end

-- This is asked at every look, so that it may not depend on how much there is.
local function is_large(key, groups)
  local pending = 0
  for _, each in ipairs(groups) do pending = pending + each.pending end
  if pending > most or redis.call('XLEN', key) > most then return true end
  local used = redis.pcall('MEMORY', 'USAGE', key)  -- pcall: an ACL may refuse it
  return type(used) == 'number' and used > most_bytes
end

-- Whether a worker has an entry that lies ahead.
local function is_under_way(key)
  for _, item in ipairs(redis.call('XPENDING', key, GROUP, limit, '+', most)) do
    if not is_handed_back(item[2]) then return true end
  end
  return false
end

-- Whether any of these entries was trimmed away.
local function is_trimmed(key, owned)
  for _, item in ipairs(owned) do
    if not exists(key, item[1]) then return true end
  end
  return false
end

-- Why the stream cannot be made anew now; nil: it can, and the groups have their members and what these own.
local function obstacle(key, groups, is_lane)
  if is_large(key, groups) then return 'large' end
  for _, each in ipairs(groups) do
    local is_ours = is_lane and each.name == GROUP
    if is_ours and is_under_way(key) then return 'busy' end
    each.members = redis.call('XINFO', 'CONSUMERS', key, each.name)
    each.owned = each.pending == 0 and {} or redis.call('XPENDING', key, each.name, '-', '+', each.pending)
    if is_ours and is_trimmed(key, each.owned) then return 'busy' end
  end
  local commands = {
    {'DEL', key}, {'XADD', key, '*', 'a', 'b'}, {'XTRIM', key, 'MAXLEN', '0'}, {'XDEL', key, '1-0'},
    {'XGROUP', 'CREATE', key, GROUP, '0'}, {'XGROUP', 'CREATECONSUMER', key, GROUP, 'a'},
    {'XCLAIM', key, GROUP, 'a', '0', '1-0'},
  }
  for _, command in ipairs(commands) do
    if redis.acl_check_cmd and not redis.acl_check_cmd(unpack(command)) then return 'denied' end
  end
end

local function with_field_id(fields, id)
  fields[#fields + 1] = 'id'
  fields[#fields + 1] = id
  return fields
end

-- The fields of a request under another ID, answered where it would have been: its `id`, or the ID that XADD returned.
-- Where no id can be read, the further field makes it a request that is told what is wrong, at that ID.
local function addressed(fields, id)
  if #fields ~= 2 or fields[1] ~= 'data' then
    local own = field({id, fields}, 'id')
    if is_id(own) then return fields end
    return with_field_id(fields, id)
  end
  local rest = string.match(fields[2], '^%s*{(.*)$')
  if not rest then return with_field_id(fields, id) end
  if #fields[2] <= DECODED then
    local ok, request = pcall(cjson.decode, fields[2])
    if not ok then return with_field_id(fields, id) end
    local own = request.id
    if is_id(own) then return fields end
    if own ~= nil then return with_field_id(fields, id) end
  end
  -- Of two keys of one name the last counts, so that an id of its own, if it has one, holds.
  return {'data', '{"id":"' .. id .. '"' .. (string.find(rest, '^%s*}') and '' or ',') .. rest}
end

-- Fills the new stream; returns the new IDs by the old ones, the old ones in order, and how many were moved.
local function fill(key, entries, is_lane)
  local ids, order, moved = {}, {}, 0
  local sound_ms = 0
  for _, item in ipairs(entries) do
    local id, fields = item[1], item[2]
    if is_ahead(id) then
      -- Later than any ID that was ever given by the clock: an answer may still stand under that.
      id = string.format('%.0f-%d', math.max(now, sound_ms) + 1, moved)
      if is_lane then fields = addressed(fields, item[1]) end
      moved = moved + 1
    else
      sound_ms = tonumber(string.match(id, '^%d+'))
    end
    redis.call('XADD', key, id, unpack(fields))
    ids[item[1]] = id
    order[#order + 1] = item[1]
  end
  if moved == 0 then
    local id = string.format('%.0f-0', math.max(now, sound_ms) + 1)
    redis.call('XADD', key, id, 'a', 'b')
    if #order == 0 then
      redis.call('XTRIM', key, 'MAXLEN', 0)  -- unlike XDEL it leaves no trace that spoils the count of what is new
    else
      redis.call('XDEL', key, id)
    end
  end
  return ids, order, moved
end

local function make_group(key, each, ids, order)
  local pointer, read = each['last-delivered-id'], 0
  for _, id in ipairs(order) do
    if not is_before(pointer, id) then read = read + 1 end
  end
  if is_ahead(pointer) then pointer = read > 0 and ids[order[read]] or '0-0' end
  redis.call('XGROUP', 'CREATE', key, each.name, pointer)
  for _, raw in ipairs(each.members) do
    redis.call('XGROUP', 'CREATECONSUMER', key, each.name, as_table(raw).name)
  end
  for _, item in ipairs(each.owned) do
    if ids[item[1]] then
      redis.call('XCLAIM', key, each.name, item[2], 0, ids[item[1]],
        'IDLE', item[3], 'RETRYCOUNT', item[4], 'FORCE', 'JUSTID')
    end
  end
end

local function mend(key, is_lane)
  local groups = groups_of(key)
  local why_not = obstacle(key, groups, is_lane)
  if why_not then return why_not, 0 end
  local entries = redis.call('XRANGE', key, '-', '+')
  for _, item in ipairs(entries) do
    if #item[2] > UNPACKED then return 'large', 0 end
  end
  redis.call('DEL', key)
  local ids, order, moved = fill(key, entries, is_lane)
  for _, each in ipairs(groups) do make_group(key, each, ids, order) end
  return 'mended', moved
end

local told = {}
for i, key in ipairs(streams) do
  if runs_ahead(key) then
    local last = as_table(redis.call('XINFO', 'STREAM', key))['last-generated-id']
    local verdict, moved = mend(key, i <= lane_count)
    told[#told + 1] = {i - 1, verdict, moved, last}
  end
end
return told
