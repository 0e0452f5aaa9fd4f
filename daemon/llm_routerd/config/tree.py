"""The configuration as one frozen tree; `load` makes it, nothing changes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Strategy = Literal["ordered", "latency"]
BackendKind = Literal["auto", "ollama", "openai", "anthropic", "litellm"]
RefusalMode = Literal["structured", "anchored", "substring", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisConfig:
    """Where the streams are.

    Attributes:
        url: may hold a password: never log it.
        prefix: of every key.
        embedded_memory_mb: `maxmemory` of an embedded server, in MiB; 0: a quarter of the memory that there is.
    """

    url: str = field(default="redis://127.0.0.1:6379/0", repr=False)
    prefix: str = "llm"
    embedded_memory_mb: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonConfig:
    """Limits of one worker process."""

    concurrency: int = 64
    lease_seconds: float = 30.0
    max_deliveries: int = 3
    drain_seconds: float = 25.0
    result_ttl_seconds: float = 3600.0
    max_request_bytes: int = 1_048_576
    dead_max_bytes: int = 33_554_432
    dead_max_entries: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsConfig:
    """Where metrics go; `listen` is `host:port` for Prometheus and health, "" switches it off."""

    channel: str = "llm_router_metrics"
    stream_maxlen: int = 10_000
    listen: str = "127.0.0.1:9464"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """How much is logged, and in which form."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalConfig:
    """How a refusal is recognised; `patterns` are added to the built-in ones."""

    mode: RefusalMode = "anchored"
    patterns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A model at an endpoint.  Times are in seconds.  What may hold a secret is left out of the repr.

    Attributes:
        model: `provider/model` as litellm spells it.
        api_base: endpoint; None: the provider's own.
        api_key: a secret; None: none configured.
        key_missing: name of what should have held the key and did not; such a deployment is disabled.
        local: may serve `local_only` requests, costs nothing.
        connect_timeout: until the connection stands.
        timeout: wall clock to the whole answer; for a request that streams, to its first token.
        idle_timeout: longest gap between tokens.
        stream_timeout: wall clock of a streamed answer.
        concurrency: calls at once.
        queue_timeout: longest wait for one of these.
        load_timeout: longest wait for a cold model to load (`cold_start = "wait"`).
        cold_start: what a request does that meets a model which is not in memory.
        keep_alive: how long Ollama keeps the model in memory, as Ollama spells it.
        max_tokens: sent where the request says nothing.
        backend: "auto" takes Ollama, OpenAI-compatible ones and Anthropic directly, others through litellm.
        supports_tools: False: passed over by requests with tools.
        params: sent with every call; a request's own win.
        input_usd_per_mtok, output_usd_per_mtok: override litellm's price table.
    """

    name: str
    model: str
    api_base: str | None = field(default=None, repr=False)
    api_key: str | None = field(default=None, repr=False)
    key_missing: str | None = None
    local: bool = False
    connect_timeout: float = 5.0
    timeout: float = 30.0
    idle_timeout: float = 8.0
    stream_timeout: float = 120.0
    concurrency: int = 64
    queue_timeout: float = 2.0
    load_timeout: float = 60.0
    cold_start: Literal["wait", "skip"] = "wait"
    keep_alive: str | None = None
    max_tokens: int | None = None
    backend: BackendKind = "auto"
    supports_tools: bool = True
    params: Mapping[str, Any] = field(default_factory=dict, repr=False)
    input_usd_per_mtok: float | None = None
    output_usd_per_mtok: float | None = None

    @property
    def provider(self) -> str:
        """The part of `model` before its first slash."""
        return self.model.partition("/")[0]

    @property
    def model_name(self) -> str:
        """The part of `model` after its first slash: what the server calls it."""
        return self.model.partition("/")[2]

    @property
    def backend_kind(self) -> Literal["ollama", "openai", "anthropic", "litellm"]:
        """Which backend calls it: "auto" resolved."""
        if self.backend != "auto":
            return self.backend
        if self.provider in {"ollama", "ollama_chat"}:
            return "ollama"
        if self.provider in {"openai", "openai_like", "hosted_vllm", "lm_studio", "llamafile"}:
            return "openai"
        if self.provider == "anthropic":
            return "anthropic"
        return "litellm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Deployments to be asked one after the other.

    Attributes:
        retries: further calls to the same deployment after a retryable failure.
        repair: further calls to the same deployment with the validation error, after an answer that is invalid.
        fallback: chains that are tried after this one.
    """

    name: str
    deployments: tuple[str, ...]
    strategy: Strategy = "ordered"
    retries: int = 0
    repair: int = 0
    fallback: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration; every name in it resolves (`load` has checked that)."""

    redis: RedisConfig = field(default_factory=RedisConfig)
    daemon: DaemonConfig = field(default_factory=DaemonConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    log: LogConfig = field(default_factory=LogConfig)
    refusal: RefusalConfig = field(default_factory=RefusalConfig)
    deployments: Mapping[str, Deployment] = field(default_factory=dict)
    chains: Mapping[str, Chain] = field(default_factory=dict)
