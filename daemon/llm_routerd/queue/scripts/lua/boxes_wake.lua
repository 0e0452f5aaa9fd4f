-- May this worker wake a box?
-- Keys: boxes.
-- Arguments: box; token, of the asking; worker; boot_ms, that a boot takes, as expected; keep_ms, for which what is known
--   of a box counts; most_boxes, of which something is told.
-- Returns 1: it is to send the packet, and nobody else does until a boot is twice over, nor for a pause after that, which
-- doubles with each waking in vain; 0: it is not.
-- After a lost reply the same token may, still.
local now = now_ms()
local known = box_in(boxes, box, now)
local power = power_in(known, now)
if power.token == token and power.woken_ms > 0 then return 1 end
if is_awake(power, now) or now < power.wake_after_ms then return 0 end
if not has_room(boxes, box, now, MOST_KEPT_MS, most_boxes) then return 0 end
local wakings = math.min(power.wakings + 1, 10)
local boots_until = now + 2 * boot_ms
write_box(boxes, box, known, {
  woken_ms = now, woken_by = worker, boots_until_ms = boots_until, wakings = wakings,
  wake_after_ms = boots_until + math.min(boot_ms * 2 ^ (wakings - 1), MOST_PAUSE_MS),
  boot_seconds = power.boot_seconds, used_ms = power.used_ms, token = token,
}, now + keep_ms)
keep(boxes, keep_ms)
return 1
