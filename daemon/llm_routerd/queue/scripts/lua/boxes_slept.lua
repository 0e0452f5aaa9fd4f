-- Tell what came of putting a box to sleep.
-- Keys: boxes.
-- Arguments: box; token, that was allowed to; is_asleep, whether that was done; pause_ms, until it is off, or else until
--   it may be tried again; keep_ms, as of boxes_wake.
-- Returns 1, also where the box is not this token's, or no longer, and nothing is done.
-- May be repeated.
local now = now_ms()
local known = box_in(boxes, box, now)
local power = power_in(known, now)
if power.token ~= token or power.asleep_ms == 0 then return 1 end
if is_asleep then
  power.asleep_ms, power.settled_ms, power.wake_after_ms, power.token = now, now + pause_ms, now + pause_ms, ''
else
  power = {boot_seconds = power.boot_seconds, used_ms = now, rest_after_ms = now + pause_ms}
end
write_box(boxes, box, known, power, now + keep_ms)
keep(boxes, keep_ms)
return 1
