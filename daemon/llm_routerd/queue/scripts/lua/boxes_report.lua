-- What a worker has seen of a box, merged with what is known.
-- Keys: boxes.
-- Arguments: box; fresh_ms, for which its resident and loading models count; keep_ms, for which all else does; most, of
--   its models; most_boxes, of which something is told: a further one is not; details, JSON, with any of
--   {"resident":{model: bytes…},"loading":[model…],"load_seconds":{model: s…},"tokens_per_second":{model: n…},
--   "down_seconds":s}.
-- Returns 1; 0: there are too many boxes.
-- With `resident`, both are what is said; without it, both stay.  A model is resident, or loading, since it was first
-- seen so, if it was seen so all the time.  Of seconds and tokens what is said last counts, model by model.  Without
-- `down_seconds` a box is down, or not, as before.
-- May be repeated: a box that is down stays so from the last time on.
local now = now_ms()
local stood = text_in(boxes, box)
local known = holds(stood, now, MOST_KEPT_MS) and told_by(stood) or {}
local said = told_by(details)

-- A number that can be one of ours; else 0.
local function number(value)
  return type(value) == 'number' and value > 0 and value < 1e14 and value or 0
end

-- A table of what somebody says, whatever that is.
local function table_of(value) return type(value) == 'table' and value or {} end

-- A table that has something; cjson cannot tell what an empty one is of.
local function some(found)
  for _ in pairs(found) do return found end
end

-- Numbers by model: those that are said, and the known ones of other models, while there is room.
local function merged(name)
  local found, count = {}, 0
  for _, source in ipairs({table_of(said[name]), table_of(known[name])}) do
    for model, value in pairs(source) do
      if count < most and type(model) == 'string' and number(value) > 0 and not found[model] then
        found[model], count = value, count + 1
      end
    end
  end
  return found
end

-- Since when something is so that was so from then on; now, if it was not.
local function since(earlier)
  local before = number(earlier)
  return before > 0 and before <= now and math.floor(before) or now
end

-- What is resident, and what is loading; `known`, if nothing is said of it.
local function state()
  local fresh_until = number(known.fresh_until_ms)
  local is_fresh = fresh_until > now and fresh_until <= now + MOST_KEPT_MS
  local resident, loading = is_fresh and table_of(known.resident) or {}, is_fresh and table_of(known.loading) or {}
  if type(said.resident) ~= 'table' then return is_fresh and fresh_until or 0, resident, loading end
  local now_resident, now_loading = {}, {}
  for model, bytes in pairs(said.resident) do
    now_resident[model] = {bytes = number(bytes), since_ms = since(table_of(resident[model]).since_ms)}
  end
  for _, model in ipairs(table_of(said.loading)) do now_loading[model] = since(loading[model]) end
  return now + fresh_ms, now_resident, now_loading
end

local down_until = number(known.down_until_ms)
if type(said.down_seconds) == 'number' then down_until = now + said.down_seconds * 1000 end
if not has_room(boxes, box, now, MOST_KEPT_MS, most_boxes) then return 0 end
local fresh_until, resident, loading = state()
local text = cjson.encode({
  fresh_until_ms = math.floor(fresh_until), down_until_ms = math.floor(down_until), resident = some(resident),
  loading = some(loading), load_seconds = some(merged('load_seconds')),
  tokens_per_second = some(merged('tokens_per_second')),
})
redis.call('HSET', boxes, box, '{"until_ms":' .. whole(now + keep_ms) .. ',' .. string.sub(text, 2))
keep(boxes, keep_ms)
return 1
