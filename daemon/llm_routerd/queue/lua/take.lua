-- Take up to so many new requests, the urgent lanes first.
-- KEYS  1-3 lanes (high, normal, low); ARGV  1 group, 2 consumer, 3 how many
-- Returns what XREADGROUP returns: {{lane, {{entry, fields}...}}...}; a lane whose key is of another type has nothing
local left, taken = tonumber(ARGV[3]), {}
for i = 1, 3 do
  if left > 0 then
    local reply = ask_lane('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', left, 'STREAMS', KEYS[i], '>')
    if reply and reply[1] then
      taken[#taken + 1] = reply[1]
      left = left - #reply[1][2]
    end
  end
end
return taken
