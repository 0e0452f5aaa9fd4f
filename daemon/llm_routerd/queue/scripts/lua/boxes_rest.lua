-- May this worker put a box to sleep?  And: for how long it has not used it.
-- Keys: boxes; calls; waiting.
-- Arguments: box; token, of the asking; idle_ms, for which this worker has not used it; after_ms, for which nobody may
--   have; claim_ms, in which it will be done; keep_ms, most_boxes, as of boxes_wake.
-- Returns 1: nothing runs there or waits for it, and it is to; no call begins there from now on.  0: it is not.
-- After a lost reply the same token may, still.
local now = now_ms()
local known = box_in(boxes, box, now)
local power = power_in(known, now)

-- Whether a call runs there, or may.
local function is_busy()
  local running, queued = living(calls, now, MOST_LEASED_MS), living(waiting, now, MOST_LEASED_MS)
  for i = 2, #running, 2 do
    if told_by(running[i]).box == box then return true end
  end
  for i = 2, #queued, 2 do
    for _, place in ipairs(table_of(told_by(queued[i]).candidates)) do
      if table_of(place)[1] == box then return true end
    end
  end
  return false
end

if power.token == token and power.asleep_ms > 0 then return 1 end
if not has_room(boxes, box, now, MOST_KEPT_MS, most_boxes) then return 0 end
local before = power.used_ms > 0 and power.used_ms <= now and power.used_ms or now
local last = is_busy() and now or math.max(before, now - idle_ms)
-- What moves it by less than a second, or a tenth, is not worth a write.
local is_new = power.used_ms == 0 or math.abs(last - power.used_ms) > math.min(1000, after_ms / 10)
if is_new then power.used_ms = last end
local is_due = now - last >= after_ms and now >= power.rest_after_ms
local may = is_due and power.asleep_ms == 0 and power.woken_ms == 0
if may then
  power.awake_ms, power.asleep_ms, power.token = 0, now, token
  power.settled_ms, power.wake_after_ms = now + claim_ms, now + claim_ms
end
if may or is_new then
  write_box(boxes, box, known, power, now + keep_ms)
  keep(boxes, keep_ms)
end
return may and 1 or 0
