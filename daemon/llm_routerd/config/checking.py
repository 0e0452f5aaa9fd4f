"""Whether a configuration is sound: by `config.schema.json` first, then in what one key says of another.

The schema is made of the types in `tree`.  It is asked, and not msgspec, because its validator tells the way to a
mistake with the names in it, and what is wrong in words of its own: msgspec's way leaves out the names of deployments
and chains, and it quotes.  Values are never quoted, for a string may have come from a secret; keys and names are.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING, Any

import jsonschema_rs
import orjson

from llm_routerd.config.addresses import check_api_base, check_redis_url
from llm_routerd.config.table import traits_at
from llm_routerd.config.tree import Config
from llm_routerd.errors import ConfigError
from llm_routerd.protocol.schema_files import load_schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from llm_routerd.config.fleet import Box
    from llm_routerd.config.mcp import McpServer
    from llm_routerd.config.tree import RedisConfig

_MASK = "\0"
_MOST_PORT = 65_535
_GROUP_BIT = 1  # of the first byte of a MAC address
_NAME = re.compile(r"\^\[A-Za-z(0-9)?(.*)\]\[A-Za-z0-9(.*)\]\{0,([0-9]+)\}\$")
_PLAIN_TYPES = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "object": "a table",
    "string": "a string",
}


def check_document(document: dict[str, Any]) -> None:
    """Check the document, with the built-in tables in it, against the schema.

    Raises:
        ConfigError: key path, what was expected, the nearest valid name.
    """
    try:
        _validator().validate(document)
    except jsonschema_rs.ValidationError as error:
        raise ConfigError(_describe(error, load_schema("config"))) from None
    except ValueError:  # a date or time, which TOML has and JSON has not
        raise ConfigError("holds a date or a time, which is not a valid value anywhere; put it in quotes") from None
    # Not in the schema: a file need not give them where it changes a built-in table.
    for kind, key in (("deployments", "model"), ("chains", "deployments")):
        for name, table in document[kind].items():
            if key not in table:
                raise ConfigError(f"{kind}.{name}: the key `{key}` is missing")
    for name, table in document.get("boxes", {}).items():
        if "api_base" not in table:
            raise ConfigError(f"boxes.{name}: the key `api_base` is missing")
    _check_addresses(document)


@cache
def _validator() -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(
        load_schema("config"), offline=True, mask=_MASK, pattern_options=jsonschema_rs.RegexOptions()
    )


def _check_addresses(document: dict[str, Any]) -> None:
    """What the schema's patterns cannot say of an address."""
    key = "redis.url"
    try:
        if url := document.get("redis", {}).get("url"):
            check_redis_url(url)
        for name, table in document["deployments"].items():
            key = f"deployments.{name}.api_base"
            if base := table.get("api_base"):
                check_api_base(base)
        for name, table in document.get("boxes", {}).items():
            key = f"boxes.{name}.api_base"
            check_api_base(table["api_base"])
        for name, table in document.get("mcp", {}).items():
            key = f"mcp.{name}.url"
            if url := table.get("url"):
                check_api_base(url)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None


def check_relations(config: Config) -> None:
    """Check what one key says of another.

    Raises:
        ConfigError: key path, what is wrong with it, the nearest valid name.
    """
    daemon = config.daemon
    if daemon.result_ttl_seconds <= 2 * daemon.lease_seconds:
        raise ConfigError(
            "daemon.result_ttl_seconds: must be more than twice daemon.lease_seconds, "
            f"which is {daemon.lease_seconds:g}, or events vanish while their request is taken over"
        )
    if config.redis.wait_replicas and config.redis.wait_replicas_seconds > daemon.lease_seconds / 3:
        raise ConfigError(
            "redis.wait_replicas_seconds: must be at most a third of daemon.lease_seconds, "
            f"which is {daemon.lease_seconds:g}, or leases run out while replicas are waited for"
        )
    _check_shards(config.redis)
    for chain in config.chains.values():
        for name in chain.deployments:
            if name not in config.deployments:
                where = f"chains.{chain.name}.deployments"
                raise ConfigError(f"{where}: there is no deployment {name!r}{nearest(name, config.deployments)}")
        for name in chain.fallback:
            if name not in config.chains:
                where = f"chains.{chain.name}.fallback"
                raise ConfigError(f"{where}: there is no chain {name!r}{nearest(name, config.chains)}")
    _check_boxes(config)
    _check_gateway(config)
    _check_mcp(config.mcp)
    finished: set[str] = set()
    for name in config.chains:
        _refuse_cycle((), name, config, finished)


def _check_shards(redis: RedisConfig) -> None:
    if beyond := [str(number) for number in redis.serve if number >= redis.shards]:
        raise ConfigError(
            f"redis.serve: there is no shard {', '.join(beyond)}; with redis.shards = {redis.shards} they are "
            f"0 to {redis.shards - 1}"
        )
    if redis.shards in redis.draining:
        raise ConfigError(f"redis.draining: {redis.shards} is the layout in force (redis.shards), and no earlier one")


def _check_boxes(config: Config) -> None:
    for box in config.boxes.values():
        if box.reserve >= box.slots:
            where = f"boxes.{box.name}.reserve"
            raise ConfigError(f"{where}: must be less than its slots, {box.slots}, or no other lane ever has one")
        _check_sleep(box)
    for name, deployment in config.deployments.items():
        where = f"deployments.{name}.boxes"
        for each in deployment.boxes:
            if each not in config.boxes:
                raise ConfigError(f"{where}: there is no box {each!r}{nearest(each, config.boxes)}")
            box = config.boxes[each]
            if deployment.backend_kind != ("ollama" if box.kind == "ollama" else "openai"):
                spelt = "ollama/…" if box.kind == "ollama" else "openai/…, hosted_vllm/… or lm_studio/…"
                raise ConfigError(f"{where}: on {each}, whose kind is {box.kind}, a model is {spelt}")
        if deployment.boxes and deployment.api_base is not None:
            raise ConfigError(f"{where}: stands in the place of `api_base`, which is given too")


def _check_sleep(box: Box) -> None:
    where = f"boxes.{box.name}"
    mac = bytes.fromhex(box.wake.replace(":", "").replace("-", ""))
    if mac and (mac[0] & _GROUP_BIT or not any(mac)):
        raise ConfigError(f"{where}.wake: no machine has this address: it is that of a group, or none")
    if not 0 < box.wake_at[1] <= _MOST_PORT:
        raise ConfigError(f"{where}.wake_address: its port must be from 1 to {_MOST_PORT}")
    if bool(box.sleep_after) != bool(box.sleep_command):
        has, lacks = ("sleep_after", "sleep_command") if box.sleep_after else ("sleep_command", "sleep_after")
        raise ConfigError(f"{where}.{has}: has a meaning beside `{lacks}` only")
    if box.sleep_after and not box.wake:
        raise ConfigError(f"{where}.sleep_after: needs `wake`, or nobody wakes it again")
    if box.sleep_command and not box.sleep_command[0]:
        raise ConfigError(f"{where}.sleep_command: its first word names the program")


def _check_gateway(config: Config) -> None:
    known = {*config.chains, *config.deployments}
    for alias, name in config.gateway.aliases.items():
        if name not in known:
            where = f"gateway.aliases.{alias}"
            raise ConfigError(f"{where}: there is no chain or deployment {name!r}{nearest(name, known)}")
        if alias in known:
            raise ConfigError(f"gateway.aliases.{alias}: a chain or deployment has this name already")
    for name, key in config.gateway.keys.items():
        if key.key is None and key.key_missing is None:
            raise ConfigError(f"gateway.keys.{name}: the key `key` is missing")
    for number, each in enumerate(config.gateway.normalise):
        try:
            re.compile(each.pattern)
        except re.error as error:
            raise ConfigError(f"gateway.normalise.{number}.pattern: no regular expression: {error.msg}") from None


def _check_mcp(servers: Mapping[str, McpServer]) -> None:
    for name, server in servers.items():
        where = f"mcp.{name}"
        if bool(server.command) == (server.url is not None) and server.secret_missing is None:
            raise ConfigError(f"{where}: needs a `command` that starts it, or the `url` where it is; and not both")
        for key, belongs_to in (("env", "command"), ("cwd", "command"), ("headers", "url")):
            if getattr(server, key) and not getattr(server, belongs_to) and server.secret_missing is None:
                raise ConfigError(f"{where}.{key}: has a meaning beside `{belongs_to}` only")
    # By their prefixes two servers' tools have no name in common, whatever the servers call them.
    for one, other in combinations(sorted(servers.values(), key=lambda each: each.name_prefix), 2):
        if other.name_prefix.startswith(one.name_prefix):
            raise ConfigError(
                f"mcp.{other.name}.prefix: {other.name_prefix!r} begins with that of mcp.{one.name}, "
                f"{one.name_prefix!r}, so that their tools could get the same names; choose another"
            )


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not known."""
    found = get_close_matches(name, known, n=1)
    return f"; did you mean `{found[0]}`?" if found else ""


def _refuse_cycle(way: tuple[str, ...], name: str, config: Config, finished: set[str]) -> None:
    if name in way:
        steps = " -> ".join([*way[way.index(name) :], name])
        raise ConfigError(f"chains.{name}.fallback: leads back to itself ({steps})")
    if name not in finished:
        for following in config.chains[name].fallback:
            _refuse_cycle((*way, name), following, config, finished)
        finished.add(name)


def _describe(error: jsonschema_rs.ValidationError, schema: dict[str, Any]) -> str:
    path = [str(step) for step in error.instance_path]
    match error.kind:
        case jsonschema_rs.ValidationErrorKind.AdditionalProperties(unexpected=unexpected):
            path.append(unexpected[0])
            told = "unknown key" + nearest(unexpected[0], _keys_at(error.schema_path, schema))
        case jsonschema_rs.ValidationErrorKind.Type(types=types):
            told = f"expected {' or '.join(_PLAIN_TYPES.get(each, each) for each in types)}"
        case jsonschema_rs.ValidationErrorKind.Enum(options=options):
            told = f"expected one of {', '.join(orjson.dumps(option).decode() for option in options)}"
        case jsonschema_rs.ValidationErrorKind.PropertyNames(
            error=jsonschema_rs.ValidationError(kind=jsonschema_rs.ValidationErrorKind.Pattern(pattern=pattern))
        ):
            told = expected_name(pattern)
        case jsonschema_rs.ValidationErrorKind.Pattern():
            told = f"expected {traits_at(Config, path).expected or 'another form'}"
        case _:
            told = error.message.replace(_MASK, "the value")
    return f"{'.'.join(path)}: {told}"


def expected_name(pattern: str) -> str:
    """What a name may be, told from its pattern: its first letter, the others, and how many those are at most."""
    digit, first, others, most = _NAME.findall(pattern)[0]
    barred = [*([] if digit else ["digit"]), *(mark for mark in others if mark not in first)]
    told = f", the first no {' '.join(barred)}" if barred else ""
    return f"a name may hold letters, digits and {' '.join(others)}, at most {int(most) + 1}{told}"


def _keys_at(schema_path: Sequence[str | int], schema: dict[str, Any]) -> list[str]:
    """The keys that may stand where one is unknown."""
    place: Any = schema
    for step in schema_path[:-1]:
        place = place[step]
        if isinstance(place, dict) and "$ref" in place:
            place = schema["$defs"][place["$ref"].rpartition("/")[2]]
    return list(place["properties"])
