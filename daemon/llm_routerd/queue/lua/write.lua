-- Write several events of one request, in order; those that stand there already are passed over.
-- KEYS  1 events; ARGV  1 "1" to PUBLISH as well, then for each event: ID, type, data
-- Out of memory it writes nothing: memory is checked before a script's first write, and not again.  So no event of
-- one request is ever refused while a later one is written, as may happen to commands that merely follow each other.
-- Returns what XADD returned for the last one, a refusal of its ID included.
local reply
for i = 2, #ARGV, 3 do
  reply = redis.pcall('XADD', KEYS[1], 'NOMKSTREAM', ARGV[i], 'type', ARGV[i + 1], 'data', ARGV[i + 2])
  if type(reply) == 'table' and reply.err then
    if not is_passed(reply) then return reply end
  elseif reply and ARGV[1] == '1' then
    local message = '{"id":"' .. ARGV[i] .. '","type":"' .. ARGV[i + 1] .. '","data":' .. ARGV[i + 2] .. '}'
    redis.call('PUBLISH', KEYS[1], message)
  end
end
return reply
