-- What has been said to a run, the oldest first; what is long is told by its beginning.
-- Keys: inbox; consent.
-- Arguments: most, entries of each; most_bytes, of one value of the inbox; most_word_bytes, of one of the consent stream.
-- Returns {ms, {{ID, call_id, "result" | "error" | "", beginning, size}...} of the inbox,
--   {{ID, {name, value...}}...} of the consent stream}; a key that is no stream has said nothing.
-- May be repeated.
local KNOWN = {confirm = true, deny = true, args_sha256 = true, by = true, args = true, always = true, reason = true}

-- One by one: whoever writes there may write much, and the rest is heard when this is done with.
local function read(stream)
  local found, after, size = {}, '-', 0
  while #found < most and size <= MOST_REPLY_BYTES do
    local reply = redis.pcall('XRANGE', stream, after, '+', 'COUNT', 1)
    local item = not reply.err and reply[1]
    if not item then break end
    found[#found + 1] = item
    after, size = '(' .. item[1], size + size_of(item)
  end
  return found
end

local answers, words = {}, {}
for _, item in ipairs(read(inbox)) do
  local result, failure = field(item, 'result'), field(item, 'error')
  local kind = failure and 'error' or result and 'result' or ''
  local value = failure or result or ''
  local call_id = string.sub(field(item, 'call_id') or '', 1, 256)
  answers[#answers + 1] = {item[1], call_id, kind, string.sub(value, 1, most_bytes), #value}
end
for _, item in ipairs(read(consent)) do
  local told = {}
  for i = 1, #item[2], 2 do
    if KNOWN[item[2][i]] then
      told[#told + 1] = item[2][i]
      told[#told + 1] = string.sub(item[2][i + 1], 1, most_word_bytes + 1)  -- one more: it is too long
    end
  end
  words[#words + 1] = {item[1], told}
end
return {now_ms(), answers, words}
