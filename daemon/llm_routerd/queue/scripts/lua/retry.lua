-- Queue a dead letter's request again, and remove the letter and the error that its old life ended with.
-- Keys: letters, the stream of dead letters; requests, the lane; streams, the events of the request's own id, where it has
--   one.
-- Arguments: letter, its entry; fields, the original ones.
-- Returns {"queued", new entry} | {"missing"} | {"answered"} | {"in_progress"}
-- XADD comes first of the writes: it alone can fail (maxmemory), and then nothing has changed.
-- After a lost reply it is "missing": the letter has gone.
if #redis.call('XRANGE', letters, letter, letter) == 0 then return {'missing'} end
local events = streams[1]
local last = events and redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]
if last then
  if last[1] ~= FINAL then return {'in_progress'} end
  if field(last, 'type') ~= 'error' then return {'answered'} end
end
local entry = redis.call('XADD', requests, '*', unpack(fields))
redis.call('XDEL', letters, letter)
if last then redis.call('DEL', events) end
return {'queued', entry}
