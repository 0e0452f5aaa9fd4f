# Ask llm-routerd with redis-rb: ruby ask.rb ["a prompt" [id]]
#
# Exit code: 0 a result, 1 an error, 2 a cancellation, 69 no Redis for half a minute.
require "json"
require "redis"
require "securerandom"

EXIT_CODES = { "result" => 0, "error" => 1, "cancelled" => 2 }.freeze # the final events
BLOCK_MS = 5_000
TRIES = 30

# Repeats a command while Redis is away. An XADD too: two entries with one id are one request.
def patiently
  tries = 0
  begin
    yield
  rescue Redis::BaseConnectionError => e
    exit 69 if (tries += 1) == TRIES
    warn "[#{e.message}; trying again]"
    sleep 1
    retry
  end
end

# Yields each event's attempt, type and data; goes on from the last ID seen, and ends after the final event.
def follow(redis, id)
  key = "llm:events:#{id}"
  last_id = "0"
  loop do
    reply = patiently { redis.xread(key, last_id, block: BLOCK_MS) }
    reply.fetch(key, []).each do |event_id, fields|
      last_id = event_id
      yield event_id.to_i, fields["type"], JSON.parse(fields["data"])
      return EXIT_CODES[fields["type"]] if EXIT_CODES.key?(fields["type"])
    end
  end
end

prompt = ARGV.fetch(0, "Why is the sky blue?")
id = ARGV.fetch(1) { SecureRandom.uuid }
redis = Redis.new(url: ENV.fetch("REDIS_URL", "redis://127.0.0.1:6379/0"), reconnect_attempts: 0)
patiently { redis.xadd("llm:requests", { id: id, prompt: prompt, stream: "true" }) }

$stdout.sync = true
shown = nil # the attempt whose text is on the screen
exit_code = follow(redis, id) do |attempt, type, data|
  if shown && (%w[rejected attempt].include?(type) || (type == "result" && data["attempt"] != shown))
    print "\n[discarded]\n"
    shown = nil
  end
  case type
  when "token"
    print data["text"]
    shown = attempt
  when "result"
    puts shown ? "" : data["raw_text"]
  when "error", "cancelled"
    warn "\n#{type}: #{data["message"] || data["reason"]}"
  end
end
exit exit_code
