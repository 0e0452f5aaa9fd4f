-- Register calls that wait for a box, or refresh them.
-- Keys: calls; waiting.
-- Arguments: lease_ms, for which they count; most, that wait at once, of all workers: further ones are not told to the
--   others; entries, {token, ms for which it has waited, details...}, of which each is JSON, its lane first.
-- Returns how many of them are told.
-- A call waits since the earliest that was ever said of it, and one that holds a slot does not wait.  Whom others have
-- gone before stays so.
-- May be repeated.
local now, count = now_ms(), 0
for i = 1, #entries, 3 do
  local token, since, details = entries[i], math.max(0, now - entries[i + 1]), entries[i + 2]
  local known, turn = text_in(waiting, token), nil
  if holds(known, now, MOST_LEASED_MS) then
    turn = turn_in(known)
    since = math.min(since, tonumber(string.match(known, '^{"until_ms":%d+,"since_ms":(%d+),')) or since)
  end
  if not holds(text_in(calls, token), now, MOST_LEASED_MS) and has_room(waiting, token, now, MOST_LEASED_MS, most) then
    local head = '{"until_ms":' .. whole(now + lease_ms) .. ',"since_ms":' .. whole(since) .. ','
    local text = head .. string.sub(details, 2)
    redis.call('HSET', waiting, token, turn and turned(text, turn) or text)
    count = count + 1
  end
end
if count > 0 then keep(waiting, lease_ms) end  -- else the key may be another's
return count
