-- What a worker has seen of a box, merged with what is known.
-- Keys: boxes.
-- Arguments: box; fresh_ms, for which its resident and loading models count; keep_ms, for which all else does; most, of
--   its models; most_boxes, of which something is told: a further one is not; details, JSON, with any of
--   {"resident":{model: bytes…},"loading":[model…],"load_seconds":{model: s…},"tokens_per_second":{model: n…},
--   "down_seconds":s,"age_seconds":s}.
-- Returns 1; 0: there are too many boxes.
-- With `resident`, both are what is said; without it, both stay.  A model is resident, or loading, since it was first
-- seen so, if it was seen so all the time.  Of seconds and tokens what is said last counts, model by model.  Without
-- `down_seconds` a box is down, or not, as before; with 0 it has answered, and so is awake (see power.py).
-- May be repeated: a box that is down stays so from the last time on.
local MOST_BOOT_SECONDS = 3600
local now = now_ms()
local known = box_in(boxes, box, now)
local said = told_by(details)

-- Numbers by model: those that are said, and the known ones of other models, while there is room.
local function merged(name)
  local found, count = {}, 0
  for _, source in ipairs({table_of(said[name]), table_of(known[name])}) do
    for model, value in pairs(source) do
      if count < most and type(model) == 'string' and positive(value) > 0 and not found[model] then
        found[model], count = value, count + 1
      end
    end
  end
  return found
end

-- Since when something is so that was so from then on; now, if it was not.
local function since(earlier)
  local before = positive(earlier)
  return before > 0 and before <= now and math.floor(before) or now
end

-- What is resident, and what is loading; `known`, if nothing is said of it.
local function state()
  local fresh_until = positive(known.fresh_until_ms)
  local is_fresh = fresh_until > now and fresh_until <= now + MOST_KEPT_MS
  local resident, loading = is_fresh and table_of(known.resident) or {}, is_fresh and table_of(known.loading) or {}
  if type(said.resident) ~= 'table' then return is_fresh and fresh_until or 0, resident, loading end
  local now_resident, now_loading = {}, {}
  for model, bytes in pairs(said.resident) do
    now_resident[model] = {bytes = positive(bytes), since_ms = since(table_of(resident[model]).since_ms)}
  end
  for _, model in ipairs(table_of(said.loading)) do now_loading[model] = since(loading[model]) end
  return now + fresh_ms, now_resident, now_loading
end

-- Whether it sleeps, now that it has answered: an answer before it has settled says nothing.
local function answered(power)
  if now < power.settled_ms then return power end
  local boot = power.boot_seconds
  if power.woken_ms > 0 and now <= power.boots_until_ms then
    local seen = math.min(math.max(1, (now - power.woken_ms) / 1000), MOST_BOOT_SECONDS)
    boot = boot > 0 and (boot + seen) / 2 or seen
  end
  local slept = power.asleep_ms > 0 or power.woken_ms > 0
  return {
    awake_ms = now, boot_seconds = boot, used_ms = slept and now or power.used_ms, rest_after_ms = power.rest_after_ms,
  }
end

local down_until, power = positive(known.down_until_ms), power_in(known, now)
-- Somebody asked it before it answered another: that it was silent then says nothing any more.
local is_old = positive(said.down_seconds) > 0 and power.awake_ms > now - positive(said.age_seconds) * 1000
if type(said.down_seconds) == 'number' and not is_old then
  down_until = now + said.down_seconds * 1000
  if said.down_seconds > 0 then power.awake_ms = 0 else power = answered(power) end
end
if not has_room(boxes, box, now, MOST_KEPT_MS, most_boxes) then return 0 end
local fresh_until, resident, loading = state()
write_box(boxes, box, {
  fresh_until_ms = fresh_until, down_until_ms = down_until, resident = resident, loading = loading,
  load_seconds = merged('load_seconds'), tokens_per_second = merged('tokens_per_second'),
}, power, now + keep_ms)
keep(boxes, keep_ms)
return 1
