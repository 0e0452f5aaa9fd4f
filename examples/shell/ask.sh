#!/bin/sh
# Ask llm-routerd with redis-cli (7 or newer) and jq: ./ask.sh ["a prompt" [id]]
#
# Exit code: 0 a result, 1 an error, 2 a cancellation, 69 no Redis for half a minute.
set -u

prompt=${1:-Why is the sky blue?}
id=${2:-sh-$$-$(date +%s)}

# Carries out a command, again while Redis is away. An XADD too: two entries with one id are one request.
patiently() {
    tries=1
    until redis-cli --no-auth-warning -e -u "${REDIS_URL:-redis://127.0.0.1:6379/0}" "$@"; do
        [ "$tries" -lt 30 ] || exit 69
        tries=$((tries + 1))
        echo "[trying again]" >&2
        sleep 1
    done
}

property() { printf '%s\n' "$data" | jq -j "$1"; }

discard() {
    [ -z "$shown" ] || printf '\n[discarded]\n'
    shown=
}

patiently XADD llm:requests '*' id "$id" prompt "$prompt" stream true >/dev/null

last_id=0  # where to go on, also after a lost connection
shown=     # the attempt whose text is on the screen
while :; do
    # One entry at a time, in six lines: the stream's key, the ID, "type", the type, "data", the JSON.
    entry=$(patiently XREAD COUNT 1 BLOCK 5000 STREAMS "llm:events:$id" "$last_id") || exit
    [ -n "$entry" ] || continue
    { read -r _; read -r last_id; read -r _; read -r type; read -r _; read -r data; } <<EVENT
$entry
EVENT
    case $type in
    attempt | rejected) discard ;;
    token) property .text; shown=${last_id%-*} ;;
    result)
        [ "$(property .attempt)" = "$shown" ] || discard
        [ -n "$shown" ] || property .raw_text
        echo
        exit 0
        ;;
    error) printf '\nerror: %s\n' "$(property .message)" >&2; exit 1 ;;
    cancelled) printf '\ncancelled: %s\n' "$(property .reason)" >&2; exit 2 ;;
    esac
done
