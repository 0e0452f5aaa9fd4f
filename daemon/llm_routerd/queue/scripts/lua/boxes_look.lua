-- The whole picture: which calls hold a slot of which box, which wait, what was reported of the boxes.
-- Keys: boxes; calls; waiting.
-- Arguments: most, of the calls that hold a slot, and of those that wait: the most urgent first, then the oldest.
-- Returns {ms, {token, text...} of the calls, {token, text...} of those that wait, how many wait, {box, text...}}.
-- Removes what has ended.  May be repeated.
local MOST_PART_BYTES = 4194304
local now = now_ms()

-- The first of {name, text...}.
local function first(flat)
  local cut, size = {}, 0
  for i = 1, math.min(#flat, 2 * most), 2 do
    size = size + #flat[i] + #flat[i + 1]
    if size > MOST_PART_BYTES then break end
    cut[i], cut[i + 1] = flat[i], flat[i + 1]
  end
  return cut
end

-- In the order in which they are told where not all can be.
local function by_urgency(flat)
  local rank, order, sorted = {}, {}, {}
  for number, lane in ipairs(LANES) do rank[lane] = number end
  for i = 1, #flat, 2 do
    local since, lane = string.match(flat[i + 1], '^{"until_ms":%d+,"since_ms":(%d+),"lane":"(%a+)"')
    order[#order + 1] = {rank[lane] or 9, tonumber(since or '') or now, flat[i], flat[i + 1]}
  end
  table.sort(order, function(one, other)
    for at = 1, 2 do
      if one[at] ~= other[at] then return one[at] < other[at] end
    end
    return one[3] < other[3]
  end)
  for _, each in ipairs(order) do
    sorted[#sorted + 1] = each[3]
    sorted[#sorted + 1] = each[4]
  end
  return sorted
end

local queued = living(waiting, now, MOST_LEASED_MS)
local count = #queued / 2
if count > most then queued = by_urgency(queued) end
local running, reported = living(calls, now, MOST_LEASED_MS), living(boxes, now, MOST_KEPT_MS)
return {now, first(running), first(queued), count, first(reported)}
