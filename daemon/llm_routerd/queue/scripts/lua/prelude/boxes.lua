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

-- A number that can be one of ours; else 0.
local function positive(value)
  return type(value) == 'number' and value > 0 and value < 1e14 and value or 0
end

-- A table of what somebody says, whatever that is.
local function table_of(value) return type(value) == 'table' and value or {} end

-- A table that has something; cjson cannot tell what an empty one is of.
local function some(found)
  for _ in pairs(found) do return found end
end

-- What is known of a box.
local function box_in(key, name, now)
  local text = text_in(key, name)
  return holds(text, now, MOST_KEPT_MS) and told_by(text) or {}
end

-- For so long a box that answered is known to be awake (power.AWAKE_SECONDS).
local AWAKE_MS = 15000

-- The longest pause between two wakings in vain (power.MOST_PAUSE_SECONDS).
local MOST_PAUSE_MS = 900000

-- Whether a box sleeps, was woken, is used (power.Power); what nobody has said, or cannot be, is 0 or ''.
local function power_in(known, now)
  local told, power = table_of(known.power), {}
  for name in string.gmatch('awake woken boots_until wake_after asleep settled used rest_after', '%S+') do
    local at = math.floor(positive(told[name .. '_ms']))
    power[name .. '_ms'] = at <= now + MOST_KEPT_MS and at or 0
  end
  for _, name in ipairs({'wakings', 'boot_seconds'}) do power[name] = positive(told[name]) end
  for _, name in ipairs({'woken_by', 'token'}) do power[name] = type(told[name]) == 'string' and told[name] or '' end
  return power
end

-- Whether it answered a moment ago, and nobody has put it to sleep since.
local function is_awake(power, now)
  return power.awake_ms > now - AWAKE_MS and power.awake_ms <= now and power.asleep_ms == 0
end

-- Write what is known of a box, which counts until then.
local function write_box(key, name, known, power, ends)
  local kept = {}
  for each, value in pairs(power) do
    if value ~= 0 and value ~= '' then kept[each] = value end
  end
  local text = cjson.encode({
    fresh_until_ms = math.floor(positive(known.fresh_until_ms)),
    down_until_ms = math.floor(positive(known.down_until_ms)),
    resident = some(table_of(known.resident)), loading = some(table_of(known.loading)),
    load_seconds = some(table_of(known.load_seconds)),
    tokens_per_second = some(table_of(known.tokens_per_second)), power = some(kept),
  })
  redis.call('HSET', key, name, '{"until_ms":' .. whole(ends) .. ',' .. string.sub(text, 2))
end
