"""The schema of the configuration file is made of the tree, and the tree knows what is said of its keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import pytest
from msgspec import NODEFAULT
from msgspec.structs import fields

from llm_routerd.config import checking
from llm_routerd.config.fleet import FleetConfig
from llm_routerd.config.providers import BACKENDS
from llm_routerd.config.schema import config_schema
from llm_routerd.config.table import Table, traits_at
from llm_routerd.config.tree import (
    Chain,
    Config,
    DaemonConfig,
    Deployment,
    LogConfig,
    LogLevel,
    MetricsConfig,
    RedisConfig,
    RefusalConfig,
)
from llm_routerd.judging.refusal_mode import RefusalMode
from llm_routerd.protocol.schema_files import load_schema

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_committed_schema_is_the_one_made_of_the_types() -> None:
    """Whoever changes a key makes the file anew; to the last word, and in the same order."""
    made = config_schema()
    assert load_schema("config") == made
    assert _order(load_schema("config")) == _order(made)


def _order(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return [[name, _order(each)] for name, each in node.items()]
    return [_order(each) for each in node] if isinstance(node, list) else []


def _defaults_of(table: type[Table]) -> dict[str, Any]:
    """A table's keys with their defaults, in the form of a document; those without one are left out."""
    found = {}
    for each in fields(table):
        default = each.default if each.default_factory is NODEFAULT else each.default_factory()
        if default is not NODEFAULT and default is not None:
            found[each.name] = list(default) if isinstance(default, tuple) else default
    return found


@pytest.mark.parametrize(
    ("place", "table"),
    [
        (("properties", "redis"), RedisConfig),
        (("properties", "daemon"), DaemonConfig),
        (("properties", "metrics"), MetricsConfig),
        (("properties", "log"), LogConfig),
        (("properties", "refusal"), RefusalConfig),
        (("properties", "fleet"), FleetConfig),
        (("$defs", "deployment"), Deployment),
        (("$defs", "chain"), Chain),
    ],
)
def test_configuration_keys_and_defaults_are_those_of_the_tree(place: tuple[str, str], table: type[Table]) -> None:
    """A key of the file is a field of the tree, with the default that the schema tells."""
    properties = load_schema("config")[place[0]][place[1]]["properties"]
    assert properties.keys() == {each.name for each in fields(table)} - {"name", "key_missing", "box", "group"}
    assert {name: each["default"] for name, each in properties.items() if "default" in each} == _defaults_of(table)


def test_configuration_choices_are_those_of_the_tree() -> None:
    """What may stand in a key is what the code takes."""
    schema = load_schema("config")
    assert schema["properties"]["log"]["properties"]["level"]["enum"] == list(get_args(LogLevel))
    assert schema["properties"]["refusal"]["properties"]["mode"]["enum"] == list(get_args(RefusalMode))
    assert schema["$defs"]["deployment"]["properties"]["backend"]["enum"] == ["auto", *BACKENDS]


def names_in(schema: Any) -> Iterator[str]:
    """The patterns of all names that the file's author chooses."""
    for key, inner in schema.items():
        if key == "propertyNames":
            yield inner["pattern"]
        elif isinstance(inner, dict):
            yield from names_in(inner)


def test_what_a_name_may_be_is_told_of_each() -> None:
    """From its pattern, so that it is true."""
    patterns = set(names_in(load_schema("config")))
    assert "^[A-Za-z0-9_][A-Za-z0-9_-]{0,30}$" in patterns
    assert {checking.expected_name(pattern)[:37] for pattern in patterns} == {
        "a name may hold letters, digits and _",
        "a name may hold letters, digits and .",
    }


def test_traits_of_a_key_are_found_by_its_path() -> None:
    """Through names of deployments, into lists and tables; nothing is known of what is not there."""
    assert traits_at(Config, ("deployments", "x", "model")).is_told
    assert traits_at(Config, ("deployments", "x", "params", "token")).is_secret
    assert traits_at(Config, ("redis", "prefix")).needs_restart
    assert not traits_at(Config, ("refusal", "patterns", "0")).expected
    for path in (("nope",), ("redis", "nope"), ("deployments", "x", "nope", "deeper"), ()):
        assert not traits_at(Config, path).is_told
