-- Note that others have gone before calls that wait, which were first in turn.
-- Keys: waiting.
-- Arguments: tokens.
-- Returns how many of them wait.
-- The first time counts.  May be repeated.
local now, count = now_ms(), 0
for _, token in ipairs(tokens) do
  local text = text_in(waiting, token)
  if holds(text, now, MOST_LEASED_MS) and string.sub(text, -1) == '}' then
    if not turn_in(text) then redis.call('HSET', waiting, token, turned(text, whole(now))) end
    count = count + 1
  end
end
return count
