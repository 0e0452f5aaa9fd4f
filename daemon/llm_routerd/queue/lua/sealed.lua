-- Which of these requests have been ended by somebody else?
-- KEYS  events streams; returns the positions (from 0) of the sealed ones.
local sealed = {}
for i = 1, #KEYS do
  local last = redis.pcall('XREVRANGE', KEYS[i], '+', '-', 'COUNT', 1)[1]  -- pcall: the key may be no stream
  if last and is_at_end(last[1]) then sealed[#sealed + 1] = i - 1 end
end
return sealed
