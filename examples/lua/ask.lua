-- Ask llm-routerd with redis-lua: lua ask.lua ["a prompt" [id]]
--
-- Exit code: 0 a result, 1 an error, 2 a cancellation, 69 no Redis for half a minute.
local cjson = require("cjson")
local redis = require("redis")
local socket = require("socket")
local url = require("socket.url")

local EXIT_CODES = { result = 0, error = 1, cancelled = 2 } -- the final events
local BLOCK_MS = 5000
local TRIES = 30

-- redis-lua is older than streams and users: these are told to it.
redis.commands.auth = redis.command("AUTH")
redis.commands.xadd = redis.command("XADD")
redis.commands.xread = redis.command("XREAD")

local function connect()
  local server = url.parse(os.getenv("REDIS_URL") or "redis://127.0.0.1:6379/0")
  local client = redis.connect({ host = server.host, port = server.port or 6379, timeout = 2 * BLOCK_MS / 1000 })
  if server.password then
    client:auth(server.user ~= "" and server.user or "default", url.unescape(server.password))
  end
  client:select(tonumber((server.path or ""):match("%d+")) or 0)
  return client
end

-- Repeats a command while Redis is away. An XADD too: two entries with one id are one request.
local client
local function patiently(name, ...)
  local words = { ... }
  for _ = 1, TRIES do
    local done, reply = pcall(function()
      client = client or connect()
      return client[name](client, unpack(words))
    end)
    if done then return reply end
    reply = tostring(reply)
    if not reply:find("connection error", 1, true) and not reply:find("could not connect", 1, true) then
      error(reply, 0)
    end
    client = nil
    io.stderr:write(("[%s; trying again]\n"):format(reply))
    socket.sleep(1)
  end
  os.exit(69)
end

-- Calls `show` with each event; goes on from the last ID seen, and returns after the final event.
local function follow(id, show)
  local last_id = "0"
  while true do
    local reply = patiently("xread", "BLOCK", BLOCK_MS, "STREAMS", "llm:events:" .. id, last_id)
    for _, entry in ipairs(reply and reply[1] and reply[1][2] or {}) do
      last_id = entry[1]
      local fields = { [entry[2][1]] = entry[2][2], [entry[2][3]] = entry[2][4] }
      show(tonumber(last_id:match("^%d+")), fields.type, cjson.decode(fields.data))
      if EXIT_CODES[fields.type] then return EXIT_CODES[fields.type] end
    end
  end
end

local prompt = arg[1] or "Why is the sky blue?"
local id = arg[2] or ("lua-%d-%d"):format(socket.gettime() * 1e6, math.random(1e6))
patiently("xadd", "llm:requests", "*", "id", id, "prompt", prompt, "stream", "true")

local shown -- the attempt whose text is on the screen
os.exit(follow(id, function(attempt, kind, data)
  if shown and (kind == "rejected" or kind == "attempt" or (kind == "result" and data.attempt ~= shown)) then
    io.write("\n[discarded]\n")
    shown = nil
  end
  if kind == "token" then
    io.write(data.text)
    io.flush()
    shown = attempt
  elseif kind == "result" then
    io.write(shown and "" or data.raw_text, "\n")
  elseif EXIT_CODES[kind] then
    io.stderr:write(("\n%s: %s\n"):format(kind, data.message or data.reason or ""))
  end
end))
