-- What the scripts know of boxes, the machines on which models run; before a script goes what it uses.
-- Three hashes, of each of which a field is one text of JSON that begins with {"until_ms":…, and counts until then: the
-- calls that hold a slot and those that wait, by token, and what was reported of each box, by its name.
-- All times are this server's.  Whatever does not look like that is nobody's, and is removed when it is met; a key of
-- another type holds nothing.

-- How far ahead the end of a lease can be: one that lies further was written by nobody, or the clock has been set back.
local MOST_LEASED_MS = 300000

-- How far ahead the end of a report can be.
local MOST_KEPT_MS = 172800000

-- What is longer is none of ours.
local MOST_TEXT_BYTES = 65536

-- A time, or a number of ms, as it is written.
local function whole(ms) return string.format('%.0f', ms) end

-- Whether a text counts now.
local function holds(text, now, most_ms)
  if type(text) ~= 'string' or #text > MOST_TEXT_BYTES then return false end
  local ends = tonumber(string.match(text, '^{"until_ms":(%d+),') or '')
  return ends ~= nil and ends > now and ends <= now + most_ms
end

-- A text that counts until then instead.
local function prolonged(text, ends)
  return '{"until_ms":' .. whole(ends) .. string.match(text, '^{"until_ms":%d+(.*)$')
end

-- When others went before a call that waits; nil: they have not.  It stands at the end of its text.
local function turn_in(text) return string.match(text, ',"turn_ms":(%d+)}$') end

-- The text with that.
local function turned(text, turn) return string.sub(text, 1, -2) .. ',"turn_ms":' .. turn .. '}' end

-- What a text says; {} where it is no object.
local function told_by(text)
  local ok, told = pcall(cjson.decode, text)
  return ok and type(told) == 'table' and told or {}
end

-- A field of a hash; false where it has none, or its key is of another type.
local function text_in(key, name)
  local text = redis.pcall('HGET', key, name)
  return type(text) == 'string' and text
end

-- What counts of a hash, {name, text...}; what does not is removed.
local function living(key, now, most_ms)
  local found, ended = {}, {}
  local flat = redis.pcall('HGETALL', key)
  if is_refusal(flat) then return found end
  for i = 1, #flat, 2 do
    if holds(flat[i + 1], now, most_ms) then
      found[#found + 1] = flat[i]
      found[#found + 1] = flat[i + 1]
    else
      ended[#ended + 1] = flat[i]
    end
  end
  for _, name in ipairs(ended) do redis.call('HDEL', key, name) end
  return found
end

-- Whether a hash can take one more field of this name.
local function has_room(key, name, now, most_ms, most)
  local size = redis.call('HLEN', key)
  if size < most or text_in(key, name) then return true end
  return #living(key, now, most_ms) / 2 < most
end

-- Keep a hash at least for as long as what was written there counts.
local function keep(key, ms)
  if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, ms) end
end
