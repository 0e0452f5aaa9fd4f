-- Hand entries back, so that any worker may take them at once and it does not count as a crash.
-- Keys: lanes.
-- Arguments: consumer; everything, whether all that the consumer owns is meant; entries, {lane, entry...}, if not.
-- Returns how many were handed back.  What no longer exists stays pending, for whoever finds its worker gone.
-- May be repeated after a lost reply: what was handed back is not the consumer's any more, and is passed over.
local PAGE = 1000
local given = 0

local function give(requests, entry, deliveries)
  if not exists(requests, entry) then return end
  give_back(requests, entry, HANDED_BACK, deliveries)
  given = given + 1
end

for i = 1, #entries, 2 do
  local requests, entry = lanes[entries[i]], entries[i + 1]
  local pending = redis.pcall('XPENDING', requests, GROUP, entry, entry, 1)[1]  -- pcall: the group may be gone
  if pending and pending[2] == consumer then give(requests, entry, pending[4]) end
end
if everything then
  for _, requests in pairs(lanes) do
    local from = '-'
    repeat
      local page = redis.pcall('XPENDING', requests, GROUP, from, '+', PAGE, consumer)
      for _, item in ipairs(page) do give(requests, item[1], item[4]) end
      from = #page > 0 and '(' .. page[#page][1]
    until #page < PAGE
  end
end
return given
