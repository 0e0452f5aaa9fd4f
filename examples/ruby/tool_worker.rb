# Serve two tools to llm-routerd with redis-rb: TOOL_FILE=notes ruby tool_worker.rb
#
# `echo` gives back what it is given, `note` appends a line to the file TOOL_FILE. One call at a time: start it again for
# more. Ends on SIGTERM, with the call that it has begun.
require "json"
require "redis"
require "socket"

Encoding.default_external = Encoding::UTF_8 # whatever the locale is

GROUP = "llm-tools"
BLOCK_MS = 2_000
LOST_MS = 180_000 # longer than any call here may take: what was read so long ago has lost its worker
CONSUMER = "#{Socket.gethostname}-#{Process.pid}" # of this process alone: what is pending for it is begun again
FILE = ENV.fetch("TOOL_FILE", "notes")

TEXT = { type: "string" }.freeze
TOOLS = {
  "echo" => {
    description: "Gives back the text that it is given.", idempotent: true,
    parameters: { type: "object", properties: { text: TEXT }, required: ["text"], additionalProperties: false }
  },
  "note" => {
    description: "Appends a line to the notes.", confirm: true, idempotent: true, timeout_ms: 120_000,
    parameters: { type: "object", properties: { text: TEXT, seconds: { type: "number", minimum: 0 } },
                  required: ["text"], additionalProperties: false }
  }
}.freeze
STREAMS = TOOLS.keys.map { |name| "llm:tools:#{name}" }.freeze

REDIS = Redis.new(url: ENV.fetch("REDIS_URL", "redis://127.0.0.1:6379/0"), reconnect_attempts: 0)

# Repeats a command while Redis is away: a second answer to a call is passed over.
def patiently
  yield
rescue Redis::BaseError => e
  warn "[#{e.message}; trying again]"
  sleep 1
  retry
end

# Registers the tools that are not there, or all; makes the consumer groups that are not there.
def register(how)
  TOOLS.each { |name, registration| REDIS.public_send(how, "llm:tools", name, JSON.generate(registration)) }
  STREAMS.each do |stream|
    REDIS.xgroup(:create, stream, GROUP, "0", mkstream: true)
  rescue Redis::CommandError => e
    raise unless e.message.start_with?("BUSYGROUP")
  end
end

def taken?(name, given)
  seconds = name == "note" ? given.fetch("seconds", 0) : 0
  known = name == "note" ? %w[text seconds] : %w[text]
  given["text"].is_a?(String) && seconds.is_a?(Numeric) && seconds >= 0 && (given.keys - known).empty?
end

# Idempotent, because it looks: where it was killed between the line and the answer, it acts once all the same.
def note(call_id, text, seconds)
  noted = File.exist?(FILE) && File.foreach(FILE).any? { |line| line.start_with?("#{call_id} ") }
  return if noted

  File.write(FILE, "#{call_id} #{text}\n", mode: "a")
  sleep seconds
end

# What to answer: the field, and its value.
def act(name, call)
  given = call["arguments"]
  return ["error", "the arguments are not valid"] unless taken?(name, given)
  return ["result", given["text"]] if name == "echo"

  note(call["call_id"], given["text"], given.fetch("seconds", 0))
  %w[result noted]
rescue SystemCallError => e
  warn "#{call["call_id"]} failed: #{e.class}" # what it says may be anybody's data
  ["error", "the tool failed"]
end

def call_in(fields)
  call = JSON.parse(fields.to_h.fetch("call", ""))
  call if call.is_a?(Hash) && call["call_id"]
rescue JSON::ParserError
  nil
end

# Answers, acknowledges and deletes one entry. No call, or one that nobody waits for any more: it does not act.
def serve(stream, entry, fields)
  call = call_in(fields)
  seconds, micros = patiently { REDIS.time } # the server's clock
  waited_for = call && call["deadline_ms"] > seconds * 1000 + micros / 1000
  answer = ["call_id", call["call_id"], *act(stream.delete_prefix("llm:tools:"), call)] if waited_for
  patiently do
    REDIS.multi do |all|
      # NOMKSTREAM: an inbox that has gone is not made again.
      all.call("XADD", "llm:inbox:#{call["id"]}", "NOMKSTREAM", "*", *answer) if answer
      all.xack(stream, GROUP, entry)
      all.xdel(stream, entry)
    end
  end
end

stopping = false
%w[TERM INT].each { |signal| trap(signal) { stopping = true } }

patiently { register(:hset) }
position = "0" # what is pending for us, from a reply that got lost; then >: what is new
until stopping
  begin
    reply = REDIS.xreadgroup(GROUP, CONSUMER, STREAMS, [position] * STREAMS.size, count: 1, block: BLOCK_MS)
    entries = reply.flat_map { |stream, found| found.map { |entry, fields| [stream, entry, fields] } }
    entries.each { |entry| serve(*entry) }
    next unless entries.empty?

    if position == ">"
      register(:hsetnx)
      STREAMS.each { |stream| REDIS.xautoclaim(stream, GROUP, CONSUMER, LOST_MS, "0", count: 10, justid: true) }
    end
    position = position == "0" ? ">" : "0"
  rescue Redis::BaseError => e # Redis is away, or was emptied
    warn "[#{e.message}; trying again]"
    sleep 1
    begin
      register(:hsetnx)
    rescue Redis::BaseError # the next round finds out
      nil
    end
    position = "0"
  end
end
STREAMS.each do |stream|
  # Our name goes with us, unless something is pending for it, which would be lost.
  pending = REDIS.xpending(stream, GROUP, "-", "+", 1, CONSUMER)
  REDIS.xgroup(:delconsumer, stream, GROUP, CONSUMER) if pending.empty?
rescue Redis::BaseError
  next
end
