"""What the environment puts over the file.

- `REDIS_URL` and `LLM_ROUTERD_LOG_LEVEL` win over it;
- `OLLAMA_API_BASE` is where the deployment `local` is, and every other Ollama deployment that gives no `api_base`;
  `host:port` will do, and `0.0.0.0`, which Ollama's users have in it, means this machine;
- `OLLAMA_MODEL` is the model of the deployment `local`;
- `ANTHROPIC_API_KEY` and `OPENAI_API_KEY` are the keys of the deployments at that provider's own address.  They never
  go to another one.  Without variable and `api_key`, the credentials `anthropic_api_key` and `openai_api_key` are
  taken where systemd brought them.

The variables of a provider stand in its row of `providers`.  A deployment at the own address of a provider that wants
a key, and has none, is configured and disabled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import urlsplit

from llm_routerd.config.providers import PROVIDERS, provider_of
from llm_routerd.config.secrets import read_credential
from llm_routerd.config.tree import LogLevel
from llm_routerd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_routerd.config.providers import Provider

_REDIS_URL = "REDIS_URL"
_LOG_LEVEL = "LLM_ROUTERD_LOG_LEVEL"
_NAMESAKE = "local"  # the deployment that a provider's variables are about


def apply_environment(document: dict[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Put it over the file and the built-in configuration, in place.

    Returns the keys that it may have changed with the variable that did: whoever set it is told its name.

    Raises:
        ConfigError: a variable has no valid value; its name, and why.
    """
    variables = {"redis.url": _REDIS_URL}
    if url := environ.get(_REDIS_URL):
        document["redis"] = {**document.get("redis", {}), "url": url}
    if level := environ.get(_LOG_LEVEL, "").lower():
        if level not in get_args(LogLevel):
            raise ConfigError(f"{_LOG_LEVEL}: expected one of {', '.join(get_args(LogLevel))}")
        document["log"] = {**document.get("log", {}), "level": level}
    addresses = {row.address_variable: _address(row, environ) for row in PROVIDERS.values()}
    for name, table in document["deployments"].items():
        row = provider_of(table["model"])
        base = addresses[row.address_variable]
        if name == _NAMESAKE:
            variables |= _apply_to_namesake(table, row, base, environ)
        if table.get("boxes"):  # which have addresses, and get no key of a provider's own
            continue
        if row.address_variable is not None:
            table.setdefault("api_base", base or row.home)
        if row.is_home(table.get("api_base")) and (key := environ.get(row.key_variable or "")):
            table["api_key"] = key
    return variables


def _apply_to_namesake(table: dict[str, Any], row: Provider, base: str, environ: Mapping[str, str]) -> dict[str, str]:
    if base and not table.get("boxes"):
        table["api_base"] = base
    if model := environ.get(row.model_variable or "", "").strip():
        provider = table["model"].partition("/")[0]
        table["model"] = f"{provider}/{model.removeprefix(f'{provider}/')}"
    about = {"api_base": row.address_variable, "model": row.model_variable}
    return {f"deployments.{_NAMESAKE}.{key}": variable for key, variable in about.items() if variable is not None}


def key_of(table: Mapping[str, Any], environ: Mapping[str, str], missing: str | None) -> tuple[str | None, str | None]:
    """The key of a deployment, and which one is missing; at most one of the two.

    `missing`: what a reference in its `api_key` has named in vain.

    Raises:
        ConfigError: a credential cannot be read.
    """
    row, given = provider_of(table["model"]), table.get("api_key")
    if given or row.key_variable is None or table.get("boxes") or not row.is_home(table.get("api_base")):
        return given, None if given else missing
    found = read_credential(row.key_variable.lower(), environ)
    return found, None if found else missing or row.key_variable


def _address(row: Provider, environ: Mapping[str, str]) -> str:
    """What a provider's variable says of its address; "" where it says nothing."""
    given = environ.get(row.address_variable or "", "").strip()
    if not given:
        return ""
    scheme, separator, rest = given.rpartition("://")
    host_and_port, _, path = rest.partition("/")
    host, port = host_and_port, ""
    if not host_and_port.endswith("]") and ":" in host_and_port:
        host, _, port = host_and_port.rpartition(":")
    if not port and not separator:
        port = str(urlsplit(row.home or "").port)
    if port and not (port.isascii() and port.isdigit()):
        raise ConfigError(f"{row.address_variable}: expected an address like {row.home}, or host:port")
    # To listen on all addresses is what a server does; a client calls the machine itself.
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - not bound to
    base = f"{scheme or 'http'}://{host}" + (f":{port}" if port else "") + (f"/{path}" if path else "")
    return base.rstrip("/")
