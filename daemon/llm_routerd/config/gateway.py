"""The table `[gateway]` of the configuration: HTTP over the streams."""

from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta, field

from llm_routerd.config.table import Name, Table, key

GatewaySecret = Annotated[
    str,
    key(
        "What is sent as `Authorization: Bearer …`, `x-api-key`; a secret, best given as a reference.",
        min_length=8,
        is_secret=True,
    ),
]


class GatewayKey(Table, frozen=True, kw_only=True):
    """Who may come in, and for whom."""

    name: Annotated[str, key("Its name.", is_ours=True)]
    key_missing: Annotated[str, key("Which key.", is_ours=True)] | None = None
    tenant: (
        Annotated[
            str,
            key(
                "Whom its requests are accounted to; it sees no other's. Absent: the request says, and all are seen.",
                pattern="^[A-Za-z0-9._-]{1,63}$",
                expected="letters, digits and . _ -, at most 63",
            ),
        ]
        | None
    ) = None
    key: GatewaySecret | None = None


class Normaliser(Table, frozen=True, kw_only=True):
    """What changes at the front of prompts from one request to the next, and so breaks every local prompt cache."""

    pattern: Annotated[
        str, key("Regular expression (Python's) of the text, within one message.", min_length=1, max_length=1000)
    ]
    action: Annotated[
        Literal["drop", "move"], key("drop: take it out; move: put it at the end of the last user message.")
    ] = "drop"


class GatewayConfig(Table, frozen=True, kw_only=True):
    """HTTP over the streams: `llm-routerd gateway`, `serve --gateway`."""

    listen: Annotated[
        str,
        key(
            "host:port of the gateway; beyond loopback only with keys, or allow_anonymous.",
            pattern=r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$",
            expected="host:port",
            is_told=True,
            needs_restart=True,
        ),
    ] = "127.0.0.1:8004"
    allow_anonymous: Annotated[bool, key("true: no key is needed, also beyond loopback.")] = False
    allow_origins: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^(\*|https?://[^/\s]+)$")], ...],
        key("Origins of pages in browsers that may ask (CORS), like https://chat.lan; empty: none.", max_length=100),
    ] = ()
    hosts: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[A-Za-z0-9.-]{1,253}$")], ...],
        key(
            "Names, beside localhost and addresses, under which the gateway may be asked without a key: what keeps a "
            "page elsewhere from asking through a browser here.",
            max_length=100,
        ),
    ] = ()
    timeout_seconds: Annotated[
        float,
        key(
            "How long a client that waits for an answer waits, queue included; then 504, and it is cancelled, unless "
            "it has an Idempotency-Key.",
            gt=0,
            le=86_400,
        ),
    ] = 600.0
    max_connections: Annotated[
        int, key("Connections at once; of more, idle ones are closed.", ge=8, le=100_000, needs_restart=True)
    ] = 4096
    on_provider_refusal: Annotated[
        Literal["fallback", "fail"],
        key("What a refusal of a model's provider does: the next model is asked, or the client is told."),
    ] = "fallback"
    normalise_known: Annotated[
        bool,
        key("Whether the built-in normalisers apply too (a coding agent's billing line, its count of tokens left)."),
    ] = False
    normalise: Annotated[
        tuple[Normaliser, ...],
        key("Applied to requests that only local deployments can answer, in this order.", max_length=50),
    ] = ()
    aliases: Annotated[
        Mapping[Name, Annotated[str, Meta(min_length=1)]],
        key(
            'Further names for chains and deployments, which clients have built in: gpt-4o = "balanced".', is_told=True
        ),
    ] = field(default_factory=dict)
    keys: Annotated[Mapping[Name, GatewayKey], key("Who may come in, by name; with none, whoever reaches it.")] = field(
        default_factory=dict
    )
