"""From a TOML file and the environment to one frozen `Config`.

How a file and the built-in configuration go together:

- `[redis]`, `[daemon]`, `[metrics]`, `[log]`, `[refusal]`: key by key, the file's win.
- `[deployments.*]`, `[chains.*]`: the built-in ones stay.  One of the same name is changed key by key; one
  whose `model` is of another provider than the built-in one's is new altogether and inherits nothing.
- Over both, the environment:

  - `REDIS_URL` and `LLM_ROUTERD_LOG_LEVEL` win over the file;
  - `OLLAMA_API_BASE` is where the deployment `local` is, and every other Ollama deployment that gives no
    `api_base`; `host:port` will do, and `0.0.0.0`, which Ollama's users have in it, means this machine;
  - `OLLAMA_MODEL` is the model of the deployment `local`;
  - `ANTHROPIC_API_KEY` and `OPENAI_API_KEY` are the keys of the deployments at that provider's own address.
    They never go to another one.  Without variable and `api_key`, the credentials `anthropic_api_key` and
    `openai_api_key` are taken where systemd brought them.

A deployment at Anthropic's or OpenAI's own address that has no key is configured and disabled.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llm_routerd.config.builtin import DEFAULT_PATH, OLLAMA_API_BASE, builtin_tables
from llm_routerd.config.checking import check_document, check_relations
from llm_routerd.config.secrets import MissingSecretError, has_reference, read_credential, resolve
from llm_routerd.config.tree import (
    Chain,
    Config,
    DaemonConfig,
    Deployment,
    LogConfig,
    MetricsConfig,
    RedisConfig,
    RefusalConfig,
)
from llm_routerd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

_OLLAMA = frozenset({"ollama", "ollama_chat"})
_OLLAMA_PORT = 11434
_LOG_LEVELS = ("debug", "info", "warning", "error")


class _Cloud(NamedTuple):
    """A provider's own address, and what may hold the key to it."""

    home: str
    variable: str
    credential: str


_CLOUD = {
    "anthropic": _Cloud("https://api.anthropic.com", "ANTHROPIC_API_KEY", "anthropic_api_key"),
    "openai": _Cloud("https://api.openai.com", "OPENAI_API_KEY", "openai_api_key"),
}
# Whoever set a variable is told its name, and not the key that it ended up in.
_VARIABLES = {
    "redis.url": "REDIS_URL",
    "deployments.local.api_base": "OLLAMA_API_BASE",
    "deployments.local.model": "OLLAMA_MODEL",
}
# Events, metrics, logs and names of keys show these, as they do a deployment's model.
_TOLD = frozenset({("redis", "prefix"), ("metrics", "channel"), ("metrics", "listen")})
# What a running worker cannot change: its connection, its slots, its sockets, its log's form.
_NEEDS_RESTART: dict[str, tuple[str, ...]] = {
    "redis": ("url", "prefix", "embedded_memory_mb"),
    "daemon": ("lease_seconds",),
    "metrics": ("channel", "stream_maxlen", "listen"),
    "log": ("level", "format"),
}


def load_config(path: str | None, environ: Mapping[str, str]) -> Config:
    """Read the configuration.

    Args:
        path: the file; None: the one in /etc where it exists, else the built-in configuration.
        environ: the environment.

    Raises:
        ConfigError: the file or the environment is unsound.  The message names the file, the key and the
            remedy, and holds nothing that a reference brought.
    """
    if path is None and _is_there(DEFAULT_PATH):
        path = DEFAULT_PATH
    source = "built-in configuration" if path is None else path
    document = {} if path is None else _read(path)
    disabled: dict[str, str] = {}
    try:
        document = _resolve_all(document, (), environ, disabled)
        merged = _merge(document)
        check_document(merged)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    try:
        _apply_environment(merged, environ)
        check_document(merged)
    except ConfigError as error:
        key, _, told = str(error).partition(": ")
        raise ConfigError(f"environment: {_VARIABLES.get(key, key)}: {told}") from None
    try:
        config = _build(merged, environ, disabled)
        check_relations(config)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    return config


def changes_needing_restart(old: Config, new: Config) -> list[str]:
    """The keys (`redis.url`) in which `new` differs from `old` and that a running worker cannot change."""
    return [
        f"{table}.{key}"
        for table, keys in _NEEDS_RESTART.items()
        for key in keys
        if getattr(getattr(old, table), key) != getattr(getattr(new, table), key)
    ]


# ---------------------------------------------------------------------- the file


def _is_there(path: str) -> bool:
    try:
        return Path(path).is_file()
    except OSError as error:  # its folder is closed to this user: going on without it would surprise
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _read(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_bytes().decode()
        return tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 at byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None


def _resolve_all(value: Any, path: tuple[str, ...], environ: Mapping[str, str], disabled: dict[str, str]) -> Any:
    """Replace the references in every string; a key of a deployment that is missing goes into `disabled`."""
    match value:
        case str():
            if has_reference(value):
                _check_place(path)
            try:
                return resolve(value, environ)
            except MissingSecretError as error:
                match path:
                    case ("deployments", name, "api_key"):
                        disabled[name] = error.name
                        return None
                    case _:
                        raise ConfigError(f"{'.'.join(path)}: {error}") from None
            except ConfigError as error:
                raise ConfigError(f"{'.'.join(path)}: {error}") from None
        case dict():
            resolved = {key: _resolve_all(each, (*path, key), environ, disabled) for key, each in value.items()}
            return {key: each for key, each in resolved.items() if each is not None}
        case list():
            return [_resolve_all(each, path, environ, disabled) for each in value]
        case _:
            return value


def _check_place(path: tuple[str, ...]) -> None:
    """References are for secrets: they have no place where the value is told to others."""
    where = ".".join(path)
    if path[0] == "chains":  # names, which messages quote
        raise ConfigError(f"{where}: a reference has no place in a chain; write the name itself")
    if path in _TOLD or (path[0], *path[2:]) == ("deployments", "model"):
        raise ConfigError(f"{where}: a reference has no place here, for the value is shown; write it itself")


def _merge(document: dict[str, Any]) -> dict[str, Any]:
    """Put the file's tables over the built-in ones."""
    merged = dict(document)
    for kind, builtin in builtin_tables().items():
        given = document.get(kind, {})
        if not isinstance(given, dict):
            continue  # of a wrong type: `check_document` says so
        tables = merged[kind] = builtin | given
        for name in builtin.keys() & given.keys():
            if isinstance(given[name], dict) and not _is_other_provider(builtin[name], given[name]):
                tables[name] = builtin[name] | given[name]
    return merged


def _is_other_provider(builtin: dict[str, Any], given: dict[str, Any]) -> bool:
    model = given.get("model", builtin.get("model"))
    return isinstance(model, str) and model.partition("/")[0] != builtin["model"].partition("/")[0]


# ---------------------------------------------------------------------- the environment


def _apply_environment(merged: dict[str, Any], environ: Mapping[str, str]) -> None:
    if url := environ.get("REDIS_URL"):
        merged["redis"] = {**merged.get("redis", {}), "url": url}
    if level := environ.get("LLM_ROUTERD_LOG_LEVEL", "").lower():
        if level not in _LOG_LEVELS:
            raise ConfigError(f"LLM_ROUTERD_LOG_LEVEL: expected one of {', '.join(_LOG_LEVELS)}")
        merged["log"] = {**merged.get("log", {}), "level": level}
    ollama_base = _ollama_base(environ.get("OLLAMA_API_BASE", "").strip())
    ollama_model = environ.get("OLLAMA_MODEL", "").strip()
    for name, table in merged["deployments"].items():
        provider = _provider(table)
        if provider in _OLLAMA:
            if name == "local" and ollama_base:
                table["api_base"] = ollama_base
            if name == "local" and ollama_model:
                table["model"] = f"{provider}/{ollama_model.removeprefix(f'{provider}/')}"
            table.setdefault("api_base", ollama_base or OLLAMA_API_BASE)
        elif _is_at_home(provider, table.get("api_base")) and (key := environ.get(_CLOUD[provider].variable)):
            table["api_key"] = key


def _provider(table: dict[str, Any]) -> str:
    return str(table["model"]).partition("/")[0]


def _is_at_home(provider: str, api_base: str | None) -> bool:
    if provider not in _CLOUD:
        return False
    home = _CLOUD[provider].home
    return api_base is None or api_base == home or api_base.startswith(f"{home}/")


def _ollama_base(given: str) -> str:
    """`OLLAMA_API_BASE` as an address; "" where it says nothing."""
    if not given:
        return ""
    scheme, separator, rest = given.rpartition("://")
    host_and_port, _, path = rest.partition("/")
    host, port = host_and_port, ""
    if not host_and_port.endswith("]") and ":" in host_and_port:
        host, _, port = host_and_port.rpartition(":")
    if not port and not separator:
        port = str(_OLLAMA_PORT)
    if port and not (port.isascii() and port.isdigit()):
        raise ConfigError("OLLAMA_API_BASE: expected an address like http://127.0.0.1:11434, or host:port")
    # To listen on all addresses is what a server does; a client calls the machine itself.
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - not bound to
    base = f"{scheme or 'http'}://{host}" + (f":{port}" if port else "") + (f"/{path}" if path else "")
    return base.rstrip("/")


# ---------------------------------------------------------------------- the tree


def _build(merged: dict[str, Any], environ: Mapping[str, str], disabled: Mapping[str, str]) -> Config:
    refusal = dict(merged.get("refusal", {}))
    if "patterns" in refusal:
        refusal["patterns"] = tuple(refusal["patterns"])
    return Config(
        redis=RedisConfig(**merged.get("redis", {})),
        daemon=DaemonConfig(**merged.get("daemon", {})),
        metrics=MetricsConfig(**merged.get("metrics", {})),
        log=LogConfig(**merged.get("log", {})),
        refusal=RefusalConfig(**refusal),
        deployments={
            name: _deployment(name, table, environ, disabled.get(name)) for name, table in merged["deployments"].items()
        },
        chains={name: _chain(name, table) for name, table in merged["chains"].items()},
    )


def _deployment(
    name: str, table: dict[str, Any], environ: Mapping[str, str], missing_reference: str | None
) -> Deployment:
    provider = _provider(table)
    api_key = table.get("api_key")
    key_missing = None if api_key else missing_reference
    if not api_key and _is_at_home(provider, table.get("api_base")):
        cloud = _CLOUD[provider]
        api_key = read_credential(cloud.credential, environ)
        key_missing = None if api_key else missing_reference or cloud.variable
    deployment = Deployment(name=name, **{**table, "api_key": api_key, "key_missing": key_missing})
    if deployment.backend_kind == "openai" and provider != "openai" and deployment.api_base is None:
        raise ConfigError(f"deployments.{name}.api_base: missing; its provider has no address of its own")
    return deployment


def _chain(name: str, table: dict[str, Any]) -> Chain:
    lists = {key: tuple(value) for key, value in table.items() if isinstance(value, list)}
    return Chain(name=name, **{**table, **lists})
