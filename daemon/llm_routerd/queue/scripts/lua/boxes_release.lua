-- A call is over, or is given up: its slot is free, and it waits no more.
-- Keys: calls; waiting.
-- Arguments: tokens, of such calls.
-- Returns how many slots were freed by that.
-- May be repeated: what is gone is gone.
local freed = 0
local now = now_ms()
for _, token in ipairs(tokens) do
  if holds(text_in(calls, token), now, MOST_LEASED_MS) then freed = freed + 1 end
  for _, key in ipairs({calls, waiting}) do redis.pcall('HDEL', key, token) end  -- pcall: a key of another type
end
return freed
