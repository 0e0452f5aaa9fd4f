-- Renew the leases of calls, whether they hold a slot or wait.
-- Keys: calls; waiting.
-- Arguments: lease_ms, for which they count from now on; tokens.
-- Returns {position (from 0)...} of those that neither hold a slot nor wait any more.
-- May be repeated.
local lost = {}
local now = now_ms()
-- A write that memory cannot refuse comes first: the next ones are not refused then, and no slot of a living worker is
-- given away because the server is full.
for _, key in ipairs({calls, waiting}) do redis.pcall('PEXPIRE', key, lease_ms, 'GT') end
for position, token in ipairs(tokens) do
  local is_kept = false
  for _, key in ipairs({calls, waiting}) do
    local text = text_in(key, token)
    if holds(text, now, MOST_LEASED_MS) then
      keep(key, token, prolonged(text, now + lease_ms), lease_ms)
      is_kept = true
    end
  end
  if not is_kept then lost[#lost + 1] = position - 1 end
end
return lost
