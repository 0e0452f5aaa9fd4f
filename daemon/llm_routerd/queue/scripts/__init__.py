"""Whatever must happen at once or not at all: the signatures of the scripts; how each does it stands in `lua/`.

To add one: `lua/NAME.lua`, with a header that tells keys, arguments, returns and what holds after a lost reply; and a
signature of that name here (and in `ALL`, if it is a worker's).  `binding` says how names get from one to the other.
What several scripts know is a paragraph of `lua/prelude/`.  It imports `protocol` only.
"""

# ruff: noqa: PLR0913 - all by name

from typing import Any

from llm_routerd.queue.scripts.binding import ArgumentList, IntText, Key, KeyList, Lanes, script


@script
def take(*, lanes: Lanes, consumer: str, count: int, shut: str) -> Any:
    """Take up to so many new requests, the urgent lanes first."""


@script
def claim(
    *,
    requests: Key,
    consumer: str,
    lease_ms: int,
    most: int,
    cursor: str | bytes,
    from_owner: str,
    asked_ms: int | None,
    late_ms: int,
    registry: str,
) -> Any:
    """Take over what was delivered to a worker that has not renewed its lease."""


@script
def find_orphans(*, requests: Key, most: int, cursor: str | bytes) -> Any:
    """Find the entries of a lane that Redis has delivered and that nobody owns."""


@script
def take_orphans(
    *,
    requests: Key,
    owner: str,
    asked_ms: int | None,
    late_ms: int,
    registry: str,
    lease_ms: int,
    seen_for_ms: int,
    entries: ArgumentList,
) -> Any:
    """Take entries of a lane that are orphans still."""


@script
def begin(
    *,
    events: Key,
    lanes: Lanes,
    consumer: str,
    entry: str,
    lane: str,
    is_new: bool,
    deliveries: int,
    ttl_ms: IntText,
    data: str | bytes,
    publishes: bool,
    request_id: str,
    looks: bool,
) -> Any:
    """Begin, or go on with, one request on this worker."""


@script
def queued(
    *,
    events: Key,
    lanes: Lanes,
    consumer: str,
    entry: str,
    lane: str,
    is_new: bool,
    deliveries: int,
    ttl_ms: IntText,
    data: str | bytes,
    publishes: bool,
    makes: bool,
) -> Any:
    """Tell that one request waits on this worker."""


@script
def write(*, events: Key, publishes: bool, words: ArgumentList) -> Any:
    """Write several events of one request, in order."""


@script
def commit(
    *,
    lanes: Lanes,
    letters: Key,
    metrics_stream: Key,
    streams: KeyList,
    entry: str,
    lane: str,
    consumer: str,
    is_begun: bool,
    under_way: str,
    kind: str,
    data: str | bytes,
    ttl_ms: IntText,
    publishes: bool,
    events_prefix: str,
    metrics: bytes,
    metrics_maxlen: IntText,
    most_letters: IntText,
    most_letter_bytes: int,
    audit_key: str,
    audit_maxlen: IntText,
    last_words: ArgumentList,
    letter: ArgumentList,
    audit: ArgumentList,
) -> Any:
    """End one request."""


@script
def dispatch(
    *,
    lanes: Lanes,
    events: Key,
    inbox: Key,
    consent: Key,
    streams: KeyList,
    consumer: str,
    entry: str,
    lane: str,
    under_way: str,
    after: str,
    ttl_ms: IntText,
    keep_ms: IntText,
    publishes: bool,
    audit_key: str,
    audit_maxlen: IntText,
    last_words: ArgumentList,
    words: ArgumentList,
    audit: ArgumentList,
) -> Any:
    """Write a model's turn of a run, and put its calls on their tools' streams."""


@script
def observe(
    *,
    lanes: Lanes,
    events: Key,
    inbox: Key,
    consent: Key,
    streams: KeyList,
    consumer: str,
    entry: str,
    lane: str,
    after: str,
    ttl_ms: IntText,
    keep_ms: IntText,
    publishes: bool,
    audit_key: str,
    audit_maxlen: IntText,
    words: ArgumentList,
    ends: ArgumentList,
    heard: ArgumentList,
    agreed: ArgumentList,
    always: ArgumentList,
    audit: ArgumentList,
) -> Any:
    """Write what tools and people have said to a run, and make the calls that somebody has agreed to."""


@script
def hear(*, inbox: Key, consent: Key, most: int, most_bytes: int, most_word_bytes: int) -> Any:
    """Read what has been said to a run."""


@script
def journal(*, events: Key, cursor: str, page: int) -> Any:
    """Read what a run is replayed from."""


@script
def news(*, streams: KeyList, count: int) -> Any:
    """Tell which of the runs that rest have something to look at."""


@script
def withdraw(*, inbox: Key, consent: Key, streams: KeyList, ttl_ms: IntText, calls: ArgumentList) -> Any:
    """Take back calls of a run that is over."""


@script
def registry(*, tools: Key, most: int, most_bytes: int) -> Any:
    """Read the tools that are registered."""


@script
def sealed(*, streams: KeyList) -> Any:
    """Tell which of these requests have been ended."""


@script
def renew(
    *,
    lanes: Lanes,
    streams: KeyList,
    consumer: str,
    ttl_ms: IntText,
    registry: str,
    lease_ms: int,
    models: str | bytes,
    entries: ArgumentList,
) -> Any:
    """Renew the leases of all that a worker has in flight, and register it."""


@script
def hand_back(*, lanes: Lanes, consumer: str, everything: bool, entries: ArgumentList) -> Any:
    """Hand entries back, so that any worker may take them at once."""


@script
def pass_on(
    *,
    requests: Key,
    consumer: str,
    entry: str,
    registry: str,
    model: str,
    owner: str,
    is_complete: bool,
    asked_ms: int,
    late_ms: int,
) -> Any:
    """Hand an entry back for a worker that knows the model which it asks for."""


@script
def retire(*, lanes: Lanes, leaving: str, silent_ms: int, registry: str) -> Any:
    """Remove consumers that own nothing."""


@script
def mend(*, streams: KeyList, ahead_ms: int, most: int, most_bytes: int, lane_count: int) -> Any:
    """Make streams anew whose IDs run ahead of the server's clock."""


@script
def owned(*, streams: KeyList, sought: ArgumentList) -> Any:
    """Tell which of these events streams belong to entries that are sought."""


@script
def look_up(*, requests: Key, before: str, request_id: str, most: int, most_bytes: int) -> Any:
    """Look for a request of this id in a lane."""


@script
def survey(*, lanes: Lanes, letters: Key, registry: str, events_prefix: str, most: int, most_bytes: int) -> Any:
    """Tell what there is to be seen of a shard."""


@script
def retry(*, letters: Key, requests: Key, streams: KeyList, letter: str, fields: ArgumentList) -> Any:
    """Queue a dead letter's request again."""


@script
def boxes_wait(*, calls: Key, waiting: Key, lease_ms: int, most: int, entries: ArgumentList) -> Any:
    """Register calls that wait for a box, or refresh them."""


@script
def boxes_look(*, boxes: Key, calls: Key, waiting: Key, most: int) -> Any:
    """Tell which calls are on which box, which wait, and what is known of the boxes."""


@script
def boxes_occupy(
    *,
    boxes: Key,
    calls: Key,
    waiting: Key,
    token: str,
    box: str,
    model: str,
    lane: str,
    slots: int,
    reserve: int,
    quiet: str,
    lease_ms: int,
    details: bytes,
) -> Any:
    """Take a slot of a box for a call, if one is free."""


@script
def boxes_release(*, calls: Key, waiting: Key, tokens: ArgumentList) -> Any:
    """Give back the slots of calls, whether they hold them or wait for them."""


@script
def boxes_renew(*, calls: Key, waiting: Key, lease_ms: int, tokens: ArgumentList) -> Any:
    """Renew the leases of calls, whether they hold a slot or wait."""


@script
def boxes_leave(*, calls: Key, waiting: Key, worker: str) -> Any:
    """Give back all that a worker holds and waits for."""


@script
def boxes_report(
    *,
    boxes: Key,
    box: str,
    fresh_ms: int,
    keep_ms: int,
    most: int,
    most_boxes: int,
    details: bytes,
) -> Any:
    """Merge what a worker has seen of a box with what is known."""


# Those of a worker.  The others are the client's, and go to a server when it first asks for one.
ALL = (
    take, claim, find_orphans, take_orphans, begin, queued, write, commit, sealed, renew, hand_back, pass_on, retire,
    mend, owned, dispatch, observe, hear, journal, news, withdraw, registry, boxes_wait, boxes_look, boxes_occupy,
    boxes_release, boxes_renew, boxes_leave, boxes_report,
)  # fmt: skip
