-- A model's turn of a run comes to calls: its events, and the calls on their tools' streams, all or nothing.
-- Keys: lanes; events; inbox, consent, of the run; streams, of the tools.
-- Arguments: consumer; entry; lane; under_way, the ID of the last event that was sent before and has no answer yet, ""
--   for none; after, the ID of the last event of this worker; ttl_ms, of the events; keep_ms, of inbox and consent;
--   publishes (PUBLISH as well); audit_key, audit_maxlen; last_words, {ID, type, data...} of the attempt, which go before;
--   words, {ID, type, data, number of the tool's stream ("": none), call...}; audit: see `write_audit`.
-- Returns {"done", {{ID, data}...} of the words, why the audit was refused (nil: it was not)} | {"gap"}, see `commit`
--       | {"lost"} | {"sealed"} | {"stale"} | {"unwritable"}: see `hindrance`
--       | {"unusable", number of a stream that takes no call; nothing was done}
-- May be repeated after a lost reply: it says the same again, and puts no call on its stream twice.
local requests = lanes[lane]
local first, last = words[1], words[#words - 4]
local why = hindrance(events, requests, entry, consumer, after, last)
if why == 'done' then return {why, standing(events, first, last)} end
if why then return {why} end
local newest = redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1)[1][1]
if under_way ~= '' and is_before(newest, under_way) then return {'gap'} end
local bad = unusable(streams)
if bad then return {'unusable', bad} end
local reply = write_events(events, last_words, publishes)
if is_refusal(reply) and not is_passed(reply) then return reply end
write_run(events, streams, words, publishes)
redis.call('PEXPIRE', events, ttl_ms)
keep_ears(inbox, consent, keep_ms)
forgive(requests, entry, consumer)
return {'done', standing(events, first, last), write_audit(audit_key, audit_maxlen, audit)}
