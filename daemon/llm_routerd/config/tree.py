"""The configuration as one frozen tree; `load` makes it, nothing changes it.

A key of the file is a field here, and all that is to be said of it stands beside its type: `schemas/config.schema.json`
is made of that (see `schema`).  What is checked beyond: `checking`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, field

from llm_routerd.config.agents import AgentsConfig, Tenant
from llm_routerd.config.audit import AuditConfig
from llm_routerd.config.fleet import Box, FleetConfig
from llm_routerd.config.gateway import GatewayConfig
from llm_routerd.config.mcp import McpServer, ServerName
from llm_routerd.config.providers import BACKENDS, PROVIDERS, Provider, provider_of
from llm_routerd.config.table import Name, Table, key
from llm_routerd.judging.refusal_mode import RefusalMode

Strategy = Literal["ordered", "latency", "resident"]
LogLevel = Literal["debug", "info", "warning", "error"]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Usd = Annotated[float, Meta(ge=0, le=1_000_000)]


class RedisConfig(Table, frozen=True, kw_only=True):
    """Where the streams are."""

    url: Annotated[
        str,
        key(
            "redis://, rediss:// or unix://; redis+sentinel://host,host/service; redis+cluster://host,host. May hold a "
            "password. REDIS_URL in the environment wins.",
            pattern=r"^((redis|rediss)(\+(sentinel|cluster))?|unix)://",
            expected="redis://host:port/db, rediss://…, unix:///path, redis+sentinel://… or redis+cluster://…",
            is_secret=True,
        ),
    ] = "redis://127.0.0.1:6379/0"
    prefix: Annotated[
        str,
        key(
            "What every key begins with; with a hash tag ({llm}) on Redis Cluster, and so then is metrics.channel "
            "({llm}_router_metrics).",
            pattern="^[A-Za-z0-9._:{}-]{1,64}$",
            expected="letters, digits and . _ : - { }, at most 64",
            is_told=True,
            needs_restart=True,
        ),
    ] = "llm"
    shards: Annotated[
        int,
        key(
            "Over how many shards the queue is spread; 1: its keys begin with the prefix as it is. Producers must know "
            "the number.",
            ge=1,
            le=1024,
            needs_restart=True,
        ),
    ] = 1
    serve: Annotated[
        tuple[Annotated[int, Meta(ge=0, le=1023)], ...],
        key(
            "The numbers of the shards that this worker serves; empty: all.",
            needs_restart=True,
            max_length=1024,
            more={"uniqueItems": True},
        ),
    ] = ()
    draining: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=1024)], ...],
        key(
            "Numbers of shards of earlier layouts: what still stands there is answered too, until this is taken out.",
            needs_restart=True,
            max_length=10,
            more={"uniqueItems": True},
        ),
    ] = ()
    wait_replicas: Annotated[
        int,
        key("How many replicas must have an answer before it counts as delivered.", ge=0, le=10, needs_restart=True),
    ] = 0
    wait_replicas_seconds: Annotated[
        float,
        key(
            "How long to wait for them; then the primary alone has to do, and a warning says so.",
            gt=0,
            le=60,
            needs_restart=True,
        ),
    ] = 1.0
    embedded_memory_mb: Annotated[
        int,
        key(
            "How much memory the server of `serve --embedded` may use (maxmemory), in MiB; 0: a quarter of the "
            "machine's, or of what its control group may use.",
            ge=0,
            le=16_777_216,
            needs_restart=True,
        ),
    ] = 0


class DaemonConfig(Table, frozen=True, kw_only=True):
    """Limits of one worker process."""

    concurrency: Annotated[int, key("Requests in flight.", ge=1, le=10_000)] = 64
    lease_seconds: Annotated[
        float,
        key(
            "How long after its worker's last sign of life a request may be taken over.",
            ge=1,
            le=3600,
            needs_restart=True,
        ),
    ] = 30.0
    max_deliveries: Annotated[int, key("Crash redeliveries before a request is dead.", ge=1, le=100)] = 3
    drain_seconds: Annotated[
        float, key("How long a stopping worker goes on with what it has in flight.", ge=0, le=3600)
    ] = 25.0
    result_ttl_seconds: Annotated[
        float,
        key(
            "How long a request's events are kept after the last one; more than twice lease_seconds.",
            ge=3,
            le=31_536_000,
        ),
    ] = 3600.0
    max_request_bytes: Annotated[
        int,
        key(
            "Bound of all fields of a request together; of a longer one no more than its beginning is kept in memory.",
            ge=1024,
            le=536_870_912,
        ),
    ] = 1_048_576
    dead_max_bytes: Annotated[
        int, key("Bound of all dead letters together; the oldest go.", ge=65_536, le=1_099_511_627_776)
    ] = 33_554_432
    dead_max_entries: Annotated[
        int, key("Bound of the number of dead letters; the oldest go.", ge=1, le=100_000_000)
    ] = 10_000


class MetricsConfig(Table, frozen=True, kw_only=True):
    """Where metrics go."""

    channel: Annotated[
        str,
        key(
            "Name of the Pub/Sub channel and of the capped stream.",
            pattern="^[A-Za-z0-9._:{}-]{1,128}$",
            expected="letters, digits and . _ : - { }, at most 128",
            is_told=True,
            needs_restart=True,
        ),
    ] = "llm_router_metrics"
    stream_maxlen: Annotated[
        int, key("Entries that the stream keeps, roughly.", ge=0, le=100_000_000, needs_restart=True)
    ] = 10_000
    listen: Annotated[
        str,
        key(
            'host:port of the HTTP endpoint for Prometheus and health; "" switches it off.',
            pattern=r"^$|^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$",
            expected='host:port, or "" to switch it off',
            is_told=True,
            needs_restart=True,
        ),
    ] = "127.0.0.1:9464"


class LogConfig(Table, frozen=True, kw_only=True):
    """How much is logged, and in which form."""

    level: Annotated[LogLevel, key("LLM_ROUTERD_LOG_LEVEL in the environment wins.", needs_restart=True)] = "info"
    format: Annotated[
        Literal["auto", "console", "json"], key("auto: for people on a terminal, JSON otherwise.", needs_restart=True)
    ] = "auto"


class RefusalConfig(Table, frozen=True, kw_only=True):
    """How a refusal is recognised."""

    mode: Annotated[
        RefusalMode,
        key(
            "structured: only what the provider marks as one; anchored: also how short answers begin; substring: also "
            "any of the patterns anywhere."
        ),
    ] = "anchored"
    patterns: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...],
        key("Phrases beyond the built-in ones.", max_length=1000),
    ] = ()


class Deployment(Table, frozen=True, kw_only=True):
    """A model at an endpoint.

    Times are in seconds.  `key_missing` names the variable or credential that should have brought the key and did not;
    such a deployment is disabled.
    """

    name: Annotated[str, key("Its name.", is_ours=True)]
    model: Annotated[
        str,
        key(
            "provider/model, as litellm spells it; required unless a built-in deployment has this name.",
            pattern=r"^[A-Za-z0-9_.-]+/[^\x00-\x20\x7f]+$",
            expected='provider/model, like "ollama/qwen2.5:7b"',
            is_told=True,
        ),
    ]
    api_base: (
        Annotated[
            str,
            key(
                "Address of the server; absent: the provider's own.",
                pattern=r"^https?://[^/\s]+",
                expected="an address like http://127.0.0.1:11434",
                is_secret=True,
            ),
        ]
        | None
    ) = None
    boxes: Annotated[
        tuple[str, ...],
        key(
            "Which boxes may serve it, in the place of `api_base`.",
            max_length=16,
            is_told=True,
            more={"uniqueItems": True},
        ),
    ] = ()
    pin: Annotated[bool, key("On its boxes no other model is loaded in its place.")] = False
    box: Annotated[str, key("The one box of it.", is_ours=True)] | None = None
    group: Annotated[str, key("The deployment that has several boxes, of which it is one.", is_ours=True)] | None = None
    api_key: Annotated[str, key("A secret; best given as a reference.", min_length=1, is_secret=True)] | None = None
    key_missing: Annotated[str, key("Which key.", is_ours=True)] | None = None
    local: Annotated[bool, key("May serve local_only requests, and costs nothing.")] = False
    connect_timeout: Annotated[Seconds, key("Until the connection stands.")] = 5.0
    timeout: Annotated[Seconds, key("To the whole answer; for a request that streams, to its first token.")] = 30.0
    idle_timeout: Annotated[Seconds, key("Longest gap between tokens.")] = 8.0
    stream_timeout: Annotated[Seconds, key("To the end of a streamed answer.")] = 120.0
    concurrency: Annotated[int, key("Calls at once.", ge=1, le=10_000)] = 64
    queue_timeout: Annotated[float, key("Longest wait for one of these.", ge=0, le=86_400)] = 2.0
    load_timeout: Annotated[Seconds, key("Longest wait for a cold model to load.")] = 60.0
    cold_start: Annotated[
        Literal["wait", "skip"], key("What a request does that meets a model which is not in memory.")
    ] = "wait"
    keep_alive: (
        Annotated[
            str,
            key(
                'How long Ollama keeps the model in memory, as Ollama spells it: "10m", "-1".',
                pattern=r"^-?[0-9]+(\.[0-9]+)?(ms|s|m|h)?([0-9]+(ms|s|m|h))*$",
                expected='a duration as Ollama spells it, like "10m" or "-1"',
            ),
        ]
        | None
    ) = None
    max_tokens: Annotated[int, key("Sent where the request says nothing.", ge=1, le=10_000_000)] | None = None
    context: Annotated[
        int,
        key(
            "Most tokens of prompt and answer together; 0: as its server tells.",
            ge=0,
            le=10_000_000,
        ),
    ] = 0
    backend: Annotated[str, key("What calls it; auto decides by the provider.", more={"enum": ["auto", *BACKENDS]})] = (
        "auto"
    )
    supports_tools: Annotated[bool, key("false: requests with tools pass it over.")] = True
    params: Annotated[Mapping[str, Any], key("Sent with every call; a request's own win.", is_secret=True)] = field(
        default_factory=dict
    )
    input_usd_per_mtok: Annotated[Usd, key("Price of a million prompt tokens, over litellm's table.")] | None = None
    output_usd_per_mtok: Annotated[Usd, key("Price of a million completion tokens, over litellm's table.")] | None = (
        None
    )

    @property
    def provider(self) -> str:
        """The part of `model` before its first slash."""
        return self.model.partition("/")[0]

    @property
    def model_name(self) -> str:
        """The part of `model` after its first slash: what the server calls it."""
        return self.model.partition("/")[2]

    @property
    def backend_kind(self) -> str:
        """Which backend calls it: "auto" resolved."""
        return provider_of(self.model).backend if self.backend == "auto" else self.backend

    @property
    def protocol(self) -> Provider:
        """The row of whoever's protocol it is called by: what holds for all that its backend calls."""
        return PROVIDERS[self.backend_kind]

    def params_for(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What a call is sent with: a request's parameters over its own, and its `max_tokens` where neither has one."""
        params = {**self.params, **given}
        if self.max_tokens is not None:
            params.setdefault("max_tokens", self.max_tokens)
        return params


class Chain(Table, frozen=True, kw_only=True):
    """Deployments to be asked one after the other."""

    name: Annotated[str, key("Its name.", is_ours=True)]
    deployments: Annotated[
        tuple[str, ...],
        key(
            "In order of preference; required unless a built-in chain has this name.",
            min_length=1,
            max_length=100,
            more={"uniqueItems": True},
        ),
    ]
    strategy: Annotated[
        Strategy, key("latency: the soonest to answer first; resident: the first that is in memory.")
    ] = "ordered"
    retries: Annotated[int, key("Further calls to the same deployment after a retryable failure.", ge=0, le=10)] = 0
    repair: Annotated[
        int, key("Further calls to the same deployment with the validation error, after an invalid answer.", ge=0, le=3)
    ] = 0
    fallback: Annotated[
        tuple[str, ...], key("Chains tried after this one.", max_length=20, more={"uniqueItems": True})
    ] = ()


class Config(Table, frozen=True, kw_only=True):
    """The whole configuration; every name in it resolves (`load` has checked that)."""

    redis: RedisConfig = RedisConfig()
    daemon: DaemonConfig = DaemonConfig()
    metrics: MetricsConfig = MetricsConfig()
    log: LogConfig = LogConfig()
    refusal: RefusalConfig = RefusalConfig()
    gateway: GatewayConfig = GatewayConfig()
    agents: AgentsConfig = AgentsConfig()
    audit: AuditConfig = AuditConfig()
    tenants: Annotated[Mapping[Name, Tenant], key("What tenants may do, by name.")] = field(default_factory=dict)
    mcp: Annotated[
        Mapping[ServerName, McpServer], key("MCP servers whose tools `llm-routerd mcp-bridge` serves, by name.")
    ] = field(default_factory=dict)
    deployments: Annotated[Mapping[Name, Deployment], key("Models at endpoints, by name.")] = field(
        default_factory=dict
    )
    chains: Annotated[Mapping[Name, Chain], key("Deployments to be asked one after the other, by name.")] = field(
        default_factory=dict
    )
    boxes: Annotated[Mapping[Name, Box], key("Machines that deployments and workers share, by name.")] = field(
        default_factory=dict
    )
    fleet: FleetConfig = FleetConfig()
