#!/bin/sh
# Serve two tools to llm-routerd with redis-cli (7 or newer) and jq: TOOL_FILE=notes ./tool-worker.sh
#
# `echo` gives back what it is given, `note` appends a line to the file TOOL_FILE. One call at a time: start it again for
# more. Ends on SIGTERM, with the call that it has begun.
set -u

file=${TOOL_FILE:-notes}
consumer=$(hostname)-$$     # of this process alone: what is pending for it and was not answered is begun again
lost_ms=180000              # longer than any call here may take: what was read so long ago has lost its worker
result=$(mktemp) || exit
stopping=
trap 'stopping=1' TERM INT
trap 'rm -f "$result"' EXIT

redis() { redis-cli --no-auth-warning -e -u "${REDIS_URL:-redis://127.0.0.1:6379/0}" "$@"; }

# Carries out a command, again while Redis is away.
patiently() {
    until redis "$@"; do
        echo "[trying again]" >&2
        sleep 1
    done
}

echo_tool='{
  "description": "Gives back the text that it is given.", "idempotent": true,
  "parameters": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"],
                 "additionalProperties": false}}'
note_tool='{
  "description": "Appends a line to the notes.", "confirm": true, "idempotent": true, "timeout_ms": 120000,
  "parameters": {"type": "object", "properties": {"text": {"type": "string"}, "seconds": {"type": "number", "minimum": 0}},
                 "required": ["text"], "additionalProperties": false}}'

# Registers the tools ($1: HSET, or HSETNX where another may have), and makes the consumer groups that are not there.
register() {
    redis "$1" llm:tools echo "$echo_tool" >/dev/null
    redis "$1" llm:tools note "$note_tool" >/dev/null
    for tool in echo note; do
        redis XGROUP CREATE "llm:tools:$tool" llm-tools 0 MKSTREAM >/dev/null 2>&1  # BUSYGROUP: it is there
    done
}

property() { printf '%s\n' "$line" | jq -j "$1"; }
holds() { printf '%s\n' "$line" | jq -e ".call.arguments | $1" >/dev/null; }

# Acts on the call in $line, and puts what to answer into the file $result; prints the field.
act() {
    case $stream in
    *:echo)
        holds 'keys == ["text"] and (.text | type == "string")' || { wrong; return; }
        property .call.arguments.text >"$result"
        ;;
    *:note)
        holds '(keys - ["seconds", "text"] == []) and (.text | type == "string") and
            ((.seconds // 0) | type == "number" and . >= 0)' || { wrong; return; }
        # Idempotent, because it looks: where it was killed between the line and the answer, it acts once all the same.
        if ! grep -q "^$call_id " "$file" 2>/dev/null; then
            printf '%s %s\n' "$call_id" "$(property .call.arguments.text)" >>"$file"
            sleep "$(property '.call.arguments.seconds // 0')"
        fi
        printf noted >"$result"
        ;;
    esac
    printf result
}

wrong() {
    printf 'the arguments are not valid' >"$result"
    printf error
}

# Answers one entry, acknowledges and deletes it. No call, or one that nobody waits for any more: it does not act.
serve() {
    stream=$(property .stream)
    entry=$(property .entry)
    call_id=$(property '.call.call_id // ""')
    now_ms=$(patiently TIME | { read -r seconds; read -r micros; echo $((seconds * 1000 + micros / 1000)); })
    if [ -n "$call_id" ] && [ "$(property .call.deadline_ms)" -gt "$now_ms" ]; then
        field=$(act)
        # By stdin, for an argument of a command is bounded. NOMKSTREAM: an inbox that has gone is not made again.
        patiently -x XADD "llm:inbox:$(property .call.id)" NOMKSTREAM '*' call_id "$call_id" "$field" <"$result" >/dev/null
    fi
    patiently XACK "$stream" llm-tools "$entry" >/dev/null
    patiently XDEL "$stream" "$entry" >/dev/null
}

register HSET
position=0  # 0: what is pending for us, from a reply that got lost; then >: what is new
while [ -z "$stopping" ]; do
    reply=$(redis --json XREADGROUP GROUP llm-tools "$consumer" COUNT 1 BLOCK 5000 \
        STREAMS llm:tools:echo llm:tools:note "$position" "$position") || {
        sleep 1  # Redis is away, or was emptied
        register HSETNX
        position=0
        continue
    }
    lines=$(printf '%s\n' "$reply" | jq -c '(. // {}) | to_entries[] | .key as $stream | .value[]
        | {stream: $stream, entry: .[0], call: (.[1] | try (.[1] | fromjson) catch null)}')
    if [ -n "$lines" ]; then
        printf '%s\n' "$lines" | while IFS= read -r line; do serve; done
    elif [ "$position" = 0 ]; then
        position='>'
    else
        register HSETNX
        for tool in echo note; do  # from workers that were killed: it is pending for us then
            redis XAUTOCLAIM "llm:tools:$tool" llm-tools "$consumer" "$lost_ms" 0 COUNT 10 JUSTID >/dev/null
        done
        position=0
    fi
done
for tool in echo note; do  # our name goes with us, unless something is pending for it, which would be lost
    [ -n "$(redis XPENDING "llm:tools:$tool" llm-tools - + 1 "$consumer")" ] ||
        redis XGROUP DELCONSUMER "llm:tools:$tool" llm-tools "$consumer" >/dev/null
done
