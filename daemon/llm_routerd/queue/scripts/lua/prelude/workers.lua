-- What the scripts know of the workers; before a script goes what it uses.
-- Each worker writes what the others need to know of it into one hash, with its renewals: a field by its name, with
-- {"lease_ms":…,"until_ms":…,"models":[…]}.  It counts until then: a lease and a half after it was last heard of, for
-- what it begins shortly before the next renewal is its own for a lease from then on.
-- The hash is no declared key: a server whose ACL is older than it refuses the hash, and not the script.
-- Whoever may write there may write anything.

local MOST_LEASE_MS = 3600000

-- For how long a registration counts.
local function holds_ms(lease) return math.floor(lease * 3 / 2) end

-- The registrations that count, by worker: {lease in ms, the whole text}; and the names of those that do not.
local function registrations(registry, now)
  local found, stale = {}, {}
  local flat = redis.pcall('HGETALL', registry)
  if flat.err then return found, stale end  -- a key of another type, or a right that is missing
  for i = 1, #flat, 2 do
    local lease, ends = string.match(flat[i + 1], '^{"lease_ms":(%d+),"until_ms":(%d+),')
    lease, ends = tonumber(lease), tonumber(ends)
    if lease and lease <= MOST_LEASE_MS and ends >= now and ends <= now + holds_ms(lease) then
      found[flat[i]] = {lease, flat[i + 1]}
    else
      stale[#stale + 1] = flat[i]
    end
  end
  return found, stale
end

-- The lease that holds: the longest of the living, one's own included.
local function longest_lease(workers, own)
  local longest = own
  for _, worker in pairs(workers) do longest = math.max(longest, worker[1]) end
  return longest
end

-- Whether a worker has told that it knows a model.
local function knows(worker, model)
  local ok, said = pcall(cjson.decode, worker and worker[2] or '')
  if not ok or type(said.models) ~= 'table' then return false end
  for _, name in ipairs(said.models) do
    if name == model then return true end
  end
  return false
end

-- Whether a living worker other than this one knows a model.
local function another_knows(workers, consumer, model)
  for name, worker in pairs(workers) do
    if name ~= consumer and knows(worker, model) then return true end
  end
  return false
end
