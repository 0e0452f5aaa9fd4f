-- Take up to so many new requests, the urgent lanes first, and none of those that are shut.
-- Keys: lanes.
-- Arguments: consumer; count; shut, names of lanes.
-- Returns what XREADGROUP returns: {{lane, {{entry, fields}...}}...}; a lane whose key is of another type has nothing.
-- After a lost reply what was taken is the consumer's own, and found by `claim`.
local left, taken = count, {}
for _, lane in ipairs(LANES) do
  if left > 0 and not string.find(shut, lane, 1, true) then
    local reply = ask_lane('XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', left, 'STREAMS', lanes[lane], '>')
    if reply and reply[1] then
      taken[#taken + 1] = reply[1]
      left = left - #reply[1][2]
    end
  end
end
return taken
