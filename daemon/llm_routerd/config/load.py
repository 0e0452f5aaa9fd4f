"""From a TOML file and the environment to one frozen `Config`.

How a file and the built-in configuration go together:

- `[redis]`, `[daemon]`, `[metrics]`, `[log]`, `[refusal]`: key by key, the file's win.
- `[deployments.*]`, `[chains.*]`: the built-in ones stay.  One of the same name is changed key by key; one
  whose `model` is of another provider than the built-in one's is new altogether and inherits nothing.
- Over both, the environment: see `environment`.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import convert

from llm_routerd.config.boxes import with_boxes
from llm_routerd.config.builtin import DEFAULT_PATH, builtin_tables
from llm_routerd.config.checking import check_document, check_relations
from llm_routerd.config.environment import apply_environment, key_of
from llm_routerd.config.providers import provider_of
from llm_routerd.config.secrets import MissingSecretError, has_reference, resolve
from llm_routerd.config.table import Table, traits_at, traits_of
from llm_routerd.config.tree import Config
from llm_routerd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping


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
    variables: Mapping[str, str] = {}
    try:
        variables = apply_environment(merged, environ)
        check_document(merged)
    except ConfigError as error:
        key, _, told = str(error).partition(": ")
        raise ConfigError(f"environment: {variables.get(key, key)}: {told}") from None
    try:
        config = _build(merged, environ, disabled)
        check_relations(config)
        config = with_boxes(config)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    return config


def changes_needing_restart(old: Config, new: Config) -> list[str]:
    """The keys (`redis.url`) in which `new` differs from `old` and that a running worker cannot change."""
    return [
        f"{name}.{key}"
        for name in Config.__struct_fields__
        if isinstance(table := getattr(old, name), Table)
        for key, traits in traits_of(type(table)).items()
        if traits.needs_restart and getattr(table, key) != getattr(getattr(new, name), key)
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
    """Replace the references in every string; what lacks one that it can do without goes into `disabled`."""
    match value:
        case str():
            if has_reference(value):
                _check_place(path)
            try:
                return resolve(value, environ)
            except MissingSecretError as error:
                if (without := _what_does_without(path)) is None:
                    raise ConfigError(f"{'.'.join(path)}: {error}") from None
                disabled[without] = error.name
                return None
            except ConfigError as error:
                raise ConfigError(f"{'.'.join(path)}: {error}") from None
        case dict():
            resolved = {key: _resolve_all(each, (*path, key), environ, disabled) for key, each in value.items()}
            return {key: each for key, each in resolved.items() if each is not None}
        case list():
            return [_resolve_all(each, path, environ, disabled) for each in value]
        case _:
            return value


def _what_does_without(path: tuple[str, ...]) -> str | None:
    """Among what is disabled, what lacks the secret that a path leads to; None: nothing may lack it."""
    match path:
        case ("deployments", name, "api_key"):
            return name
        case ("gateway", "keys", name, "key"):  # which a daemon beside the gateway need not have
            return _gateway_key(name)
        case ("mcp", name, _, *_):  # likewise, beside the bridge
            return _mcp_server(name)
        case _:
            return None


def _gateway_key(name: str) -> str:
    return f"gateway.keys.{name}"


def _mcp_server(name: str) -> str:
    return f"mcp.{name}"


def _check_place(path: tuple[str, ...]) -> None:
    """References are for secrets: they have no place where the value is told to others."""
    where = ".".join(path)
    if path[0] == "chains":  # names, which messages quote
        raise ConfigError(f"{where}: a reference has no place in a chain; write the name itself")
    if traits_at(Config, path).is_told:
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
                if "boxes" in given[name] and "api_base" not in given[name]:
                    tables[name].pop("api_base", None)
    return merged


def _is_other_provider(builtin: dict[str, Any], given: dict[str, Any]) -> bool:
    model = given.get("model", builtin.get("model"))
    return isinstance(model, str) and model.partition("/")[0] != builtin["model"].partition("/")[0]


# ---------------------------------------------------------------------- the tree


def _build(merged: dict[str, Any], environ: Mapping[str, str], disabled: Mapping[str, str]) -> Config:
    named = {kind: {name: {**table, "name": name} for name, table in merged[kind].items()} for kind in builtin_tables()}
    for name, table in named["deployments"].items():
        table["api_key"], table["key_missing"] = key_of(table, environ, disabled.get(name))
    named["tenants"] = {name: {**table, "name": name} for name, table in merged.get("tenants", {}).items()}
    named["mcp"] = {
        name: {**table, "name": name, "secret_missing": disabled.get(_mcp_server(name))}
        for name, table in merged.get("mcp", {}).items()
    }
    named["boxes"] = {name: {**table, "name": name} for name, table in merged.get("boxes", {}).items()}
    # Not strict: to TOML 5.0 is no whole number, to the schema it is.
    config = convert({**merged, **named, "gateway": _gateway(merged, disabled)}, Config, strict=False)
    for name, deployment in config.deployments.items():
        lent = deployment.protocol.lends_protocol and deployment.protocol is not provider_of(deployment.model)
        if lent and deployment.api_base is None and not deployment.boxes:
            raise ConfigError(f"deployments.{name}.api_base: missing; its provider has no address of its own")
    return config


def _gateway(merged: dict[str, Any], disabled: Mapping[str, str]) -> dict[str, Any]:
    """Its table, whose keys know their names, and which secret is missing."""
    table = merged.get("gateway", {})
    keys = {
        name: {"key_missing": disabled.get(_gateway_key(name)), **each, "name": name}
        for name, each in table.get("keys", {}).items()
    }
    return {**table, "keys": keys}
