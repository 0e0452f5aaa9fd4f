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

-- Renew one, if it is there.
local function renewed(key, token)
  local text = text_in(key, token)
  if not holds(text, now, MOST_LEASED_MS) then return false end
  redis.call('HSET', key, token, prolonged(text, now + lease_ms))
  return true
end

for position, token in ipairs(tokens) do
  if not renewed(calls, token) and not renewed(waiting, token) then lost[#lost + 1] = position - 1 end
end
return lost
