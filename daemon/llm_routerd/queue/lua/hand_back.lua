-- Hand entries back, so that any worker may take them at once and it does not count as a crash.
-- KEYS  1-3 lanes (high, normal, low)
-- ARGV  1 group, 2 consumer, 3 idle time in ms to give them (above the lease), 4 who owns them from now on,
--       then per entry: lane number, entry; none: all that the consumer owns
-- Returns how many were handed back.  What no longer exists stays pending, for whoever finds its worker gone.
local PAGE = 1000
local given = 0

local function give(requests, entry, deliveries)
  if not exists(requests, entry) then return end
  redis.call('XCLAIM', requests, ARGV[1], ARGV[4], 0, entry,
    'IDLE', ARGV[3], 'RETRYCOUNT', math.max(0, deliveries - 1), 'JUSTID')
  given = given + 1
end

for i = 5, #ARGV, 2 do
  local requests, entry = KEYS[tonumber(ARGV[i])], ARGV[i + 1]
  local pending = redis.pcall('XPENDING', requests, ARGV[1], entry, entry, 1)[1]  -- pcall: the group may be gone
  if pending and pending[2] == ARGV[2] then give(requests, entry, pending[4]) end
end
if #ARGV == 4 then
  for i = 1, #KEYS do
    local from = '-'
    repeat
      local page = redis.pcall('XPENDING', KEYS[i], ARGV[1], from, '+', PAGE, ARGV[2])
      for _, item in ipairs(page) do give(KEYS[i], item[1], item[4]) end
      from = #page > 0 and '(' .. page[#page][1]
    until #page < PAGE
  end
end
return given
