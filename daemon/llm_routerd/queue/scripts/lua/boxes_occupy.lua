-- Take a slot of a box for a call, if one is free.
-- Keys: boxes; calls; waiting.
-- Arguments: token; box; model; lane; slots, of the box; reserve, how many of them are for the lane "high" alone; quiet:
--   "" for a call that has looked whose turn it is, else "any", or "resident" where the box tells what it has; sleeps:
--   whether the box may be asleep;
--   lease_ms, for which the slot is the call's; details, JSON.
-- Returns {verdict, running}:
--   "granted": it has one, and no longer waits;
--   "full": it has none;
--   "contended": it has none, for it has not looked, and others wait, calls of another model are on the box, the box
--     is down, or not known to be awake if it sleeps at times, or its model is not known to be there;
--   "asleep": it has none, for the box has been put to sleep;
--   "elsewhere": its token has one of another box, and keeps that;
--   running: how many calls have a slot of this box now, this one included.
-- After a lost reply it is granted again: the lease begins anew, and nothing else changes.
local now = now_ms()
local running, unhurried, held, held_box, is_mixed = 0, 0, nil, nil, false

-- Whether a look would tell more than that the box has its model, and nobody waits.
local function is_contended()
  if is_mixed or redis.pcall('HLEN', waiting) ~= 0 then return true end
  local seen = box_in(boxes, box, now)
  if sleeps and not is_awake(power_in(seen, now), now) then return true end
  if (tonumber(seen.down_until_ms) or 0) > now then return true end
  if quiet ~= 'resident' then return false end
  local is_fresh = (tonumber(seen.fresh_until_ms) or 0) > now
  return not (is_fresh and type(seen.resident) == 'table' and seen.resident[model])
end

local found = living(calls, now, MOST_LEASED_MS)
for i = 1, #found, 2 do
  local call = told_by(found[i + 1])
  if call.box == box then
    running = running + 1
    if call.lane ~= 'high' then unhurried = unhurried + 1 end
    if call.model ~= model then is_mixed = true end
  end
  if found[i] == token and type(call.box) == 'string' then held, held_box = found[i + 1], call.box end
end
if held and held_box ~= box then return {'elsewhere', running} end
if held then
  redis.call('HSET', calls, token, prolonged(held, now + lease_ms))
else
  if quiet ~= '' and is_contended() then return {'contended', running} end
  if sleeps and power_in(box_in(boxes, box, now), now).asleep_ms > 0 then return {'asleep', running} end
  if running >= slots or (lane ~= 'high' and unhurried >= slots - reserve) then return {'full', running} end
  local head = '{"until_ms":' .. whole(now + lease_ms) .. ',"began_ms":' .. whole(now) .. ','
  redis.call('HSET', calls, token, head .. string.sub(details, 2))
  running = running + 1
end
keep(calls, lease_ms)
redis.pcall('HDEL', waiting, token)  -- pcall: a key of another type
return {'granted', running}
