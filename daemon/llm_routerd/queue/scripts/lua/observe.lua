-- What tools and people have said to a run becomes events, once; calls that somebody has agreed to are made with that.
-- Keys: lanes; events; inbox, consent, of the run; streams, of the tools.
-- Arguments: consumer; entry; lane; after, the ID of the last event that was seen; ttl_ms, of the events; keep_ms, of inbox
--   and consent; publishes (PUBLISH as well); audit_key, audit_maxlen; words, {ID, type, data, number of the tool's stream
--   ("": none), call...}; ends, {number of a tool's stream, entry there, position in words of the event that stands only if a tool has taken
--   that call ("": any), data in its place if none has...}; heard, agreed: IDs of the entries of inbox and consent that
--   are done with; always, names of tools that wait for nobody any more in this run; audit: see `write_audit`.
-- Returns {"done", {{ID, data}...} of the words, why the audit was refused (nil: it was not)}
--       | {"lost"} | {"sealed"} | {"stale"} | {"unwritable"} | {"unusable", number}: see `dispatch`
-- With no words it only makes sure that the run is ours, and lets it rest.
-- May be repeated after a lost reply: it says the same again, and puts no call on its stream twice.
local requests = lanes[lane]
local first, last = words[1], words[#words - 4]
local why = hindrance(events, requests, entry, consumer, after, last)
if why == 'done' then return {why, standing(events, first, last)} end
if why then return {why} end
local bad = unusable(streams)
if bad then return {'unusable', bad} end

for i = 1, #ends, 4 do
  local stream, at = streams[tonumber(ends[i])], tonumber(ends[i + 2])
  if at and not is_taken(stream, ends[i + 1]) then words[at + 2] = ends[i + 3] end
end
write_run(events, streams, words, publishes)
for i = 1, #ends, 4 do redis.call('XDEL', streams[tonumber(ends[i])], ends[i + 1]) end
if #heard > 0 then redis.pcall('XDEL', inbox, unpack(heard)) end  -- pcall: others may have made it what they like
if #agreed > 0 then redis.pcall('XDEL', consent, unpack(agreed)) end
redis.call('PEXPIRE', events, ttl_ms)
keep_ears(inbox, consent, keep_ms)
-- Whoever may cancel may write events, and none but workers makes a group of the consent stream: that is believed.
for _, tool in ipairs(always) do redis.pcall('XGROUP', 'CREATE', consent, ALWAYS .. tool, '$') end
forgive(requests, entry, consumer)
local unaudited = write_audit(audit_key, audit_maxlen, audit)
if not last then return {'done', {}, unaudited} end
return {'done', standing(events, first, last), unaudited}
