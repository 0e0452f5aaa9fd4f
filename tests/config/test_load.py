"""A file over the built-in configuration becomes one tree, or an error that names key and remedy."""

from __future__ import annotations

import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema_rs
import pytest
from msgspec.structs import replace

from llm_routerd.config import load as load_module
from llm_routerd.config.builtin import DEFAULT_PATH
from llm_routerd.config.load import changes_needing_restart, load_config
from llm_routerd.config.tree import (
    Chain,
    Config,
    DaemonConfig,
    LogConfig,
    MetricsConfig,
    RedisConfig,
    RefusalConfig,
)
from llm_routerd.errors import ConfigError
from llm_routerd.protocol.schema_files import load_schema
from tests.config.configs import error, load, load_builtin

if TYPE_CHECKING:
    from collections.abc import Callable

EXAMPLE = Path(__file__).parents[2] / "systemd" / "config.toml"


# ---------------------------------------------------------------------- what is unsound


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[redsi]", "redsi: unknown key; did you mean `redis`?"),
        ("[redis]\nur = 'x'", "redis.ur: unknown key; did you mean `url`?"),
        ("[deployments.haiku]\ntimeot = 3", "deployments.haiku.timeot: unknown key; did you mean `timeout`?"),
        ("[chains.default]\nfallbacks = []", "chains.default.fallbacks: unknown key; did you mean `fallback`?"),
        ("[deployments.haiku]\nzzzzzz = 3", "deployments.haiku.zzzzzz: unknown key"),
        ("[deployments.haiku]\nkey_missing = 'x'", "deployments.haiku.key_missing: unknown key"),
        ("redis = 3", "redis: expected a table"),
        ("deployments = 3", "deployments: expected a table"),
        ("[deployments]\nx = 3", "deployments.x: expected a table"),
        ("[redis]\nurl = 'http://h'", "redis.url: expected redis://host:port/db, rediss://"),
        ("[redis]\nprefix = 'a b'", "redis.prefix: expected letters, digits"),
        ("[redis]\nprefix = ''", "redis.prefix: expected letters, digits"),
        ("[daemon]\nconcurrency = '5'", "daemon.concurrency: expected a whole number"),
        ("[daemon]\nconcurrency = 0", "daemon.concurrency: the value is less than the minimum of 1"),
        ("[daemon]\nlease_seconds = -1", "daemon.lease_seconds: the value is less than"),
        ("[daemon]\nlease_seconds = nan", "daemon.lease_seconds: "),
        ("[daemon]\ndrain_seconds = inf", "daemon.drain_seconds: "),
        ("[daemon]\nmax_request_bytes = 10", "daemon.max_request_bytes: the value is less than"),
        (
            "[redis]\nwait_replicas = 1\nwait_replicas_seconds = 11",
            "redis.wait_replicas_seconds: must be at most a third of daemon.lease_seconds, which is 30",
        ),
        ("[daemon]\nlease_seconds = 1800", "daemon.result_ttl_seconds: must be more than twice daemon.lease_seconds"),
        ("[metrics]\nlisten = '9464'", "metrics.listen: expected host:port"),
        ("[log]\nlevel = 'loud'", 'log.level: expected one of "debug", "info", "warning", "error"'),
        ("[log]\nlevel = 1979-05-27", "holds a date or a time"),
        ("[refusal]\npatterns = ['']", "refusal.patterns.0: "),
        ("[deployments.x]", "deployments.x: the key `model` is missing"),
        ("[deployments.x]\nmodel = 'gpt'", "deployments.x.model: expected provider/model"),
        ("[deployments.x]\nmodel = 'a/b'\napi_base = 'h:1'", "deployments.x.api_base: expected an address"),
        ("[deployments.x]\nmodel = 'a/b'\ntimeout = 0", "deployments.x.timeout: "),
        ("[deployments.x]\nmodel = 'hosted_vllm/m'", "deployments.x.api_base: missing; its provider has no address"),
        (
            "[deployments.'a b']\nmodel = 'a/b'",
            "deployments: a name may hold letters, digits and . _ : / -, at most 128, the first no . _ : / -",
        ),
        ("[chains.x]", "chains.x: the key `deployments` is missing"),
        ("[chains.x]\ndeployments = []", "chains.x.deployments: the value has less than 1 item"),
        ("[chains.x]\ndeployments = ['local', 'local']", "chains.x.deployments: "),
        ("[chains.x]\ndeployments = ['locl']", "chains.x.deployments: there is no deployment 'locl'; did you mean `lo"),
        (
            "[chains.x]\ndeployments = ['local']\nfallback = ['qualty']",
            "chains.x.fallback: there is no chain 'qualty'; did you mean `quality`?",
        ),
        ("[chains.x]\ndeployments = ['local']\nfallback = ['x']", "chains.x.fallback: leads back to itself (x -> x)"),
        (
            "[chains.fast]\nfallback = ['balanced']",
            "chains.fast.fallback: leads back to itself (fast -> balanced -> fast)",
        ),
        ("[chains.x]\ndeployments = ['local']\nretries = 99", "chains.x.retries: the value is greater than"),
        ("x = ", "is not TOML: "),
        ("[redis]\n[redis]", "is not TOML: "),
        ("[redis]\nurl = '${env:NOPE}'", "redis.url: the environment variable NOPE is not set"),
        ("[redis]\nurl = '${file:/nope}'", "redis.url: the file /nope does not exist"),
        ("[redis]\nurl = '${file:nope}'", "redis.url: ${file:…} does not hold an absolute path"),
        ("[redis]\nurl = '${credential:nope}'", "redis.url: there is no credential nope"),
        ("[redis]\nurl = '${credential:../x}'", "redis.url: ${credential:…} does not name a credential"),
        ("[redis]\nurl = '${evn:X}'", "redis.url: a reference of an unknown kind"),
    ],
)
def test_unsound_file_names_key_and_remedy(text: str, message: str) -> None:
    """Every mistake is told by file, key path and what to do."""
    assert error(text).startswith(message)


def test_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """A file that was named must be there, be a file, and be text."""
    for path, told in ((tmp_path / "nope.toml", "No such file"), (tmp_path, "directory")):
        with pytest.raises(ConfigError, match=told) as caught:
            load_config(str(path), {})
        assert str(path) in str(caught.value)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match="is not UTF-8 at byte 5"):
        load_config(str(binary), {})


# ---------------------------------------------------------------------- what stands without a file


def test_builtin_configuration_is_the_documented_one() -> None:
    """Deployments and chains of the system that this project carries on."""
    config = load_builtin()
    assert config == replace(
        Config(), deployments=config.deployments, chains=config.chains
    )  # all other tables have their defaults
    assert {name: deployment.model for name, deployment in config.deployments.items()} == {
        "local": "ollama/qwen2.5:7b",
        "haiku": "anthropic/claude-haiku-4-5-20251001",
        "sonnet": "anthropic/claude-sonnet-4-6",
        "sonnet-4": "anthropic/claude-sonnet-4-20250514",
        "gpt-4o": "openai/gpt-4o",
    }
    local = config.deployments["local"]
    assert (local.api_base, local.local, local.timeout) == ("http://127.0.0.1:11434", True, 8.0)
    assert (local.concurrency, local.queue_timeout, local.key_missing) == (4, 2.0, None)
    assert [name for name, each in config.deployments.items() if each.local] == ["local"]
    ollama = ("local",)
    assert config.chains == {
        "default": Chain(name="default", deployments=("local", "haiku", "sonnet")),
        "local": Chain(name="local", deployments=ollama),
        "fast": Chain(name="fast", deployments=ollama),
        "economy": Chain(name="economy", deployments=ollama),
        "balanced": Chain(
            name="balanced", deployments=("local", "sonnet-4"), strategy="latency", retries=2, fallback=("fast",)
        ),
        "quality": Chain(
            name="quality", deployments=("sonnet-4", "gpt-4o"), strategy="latency", retries=2, fallback=("fast",)
        ),
    }


def test_file_in_etc_is_read_where_it_exists(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a path the default one is looked at, and nothing is wrong if it is not there."""
    assert DEFAULT_PATH == "/etc/llm-routerd/config.toml"
    path = tmp_path / "etc.toml"
    monkeypatch.setattr(load_module, "DEFAULT_PATH", str(path))
    assert load_config(None, {}).redis.prefix == "llm"
    path.write_text("[redis]\nprefix = 'q'")
    assert load_config(None, {}).redis.prefix == "q"


def test_example_file_is_the_builtin_configuration() -> None:
    """It shows every key with its default: loading it changes nothing."""
    assert load_config(str(EXAMPLE), {}) == load_builtin()


def test_example_file_shows_every_key() -> None:
    """What has no default stands there as a comment."""
    text = EXAMPLE.read_text(encoding="utf-8")
    document = tomllib.loads(text)
    schema = load_schema("config")
    for table in ("redis", "daemon", "metrics", "log", "refusal"):
        assert document[table].keys() == schema["properties"][table]["properties"].keys()
    assert document["chains"]["default"].keys() == schema["$defs"]["chain"]["properties"].keys()
    missing = schema["$defs"]["deployment"]["properties"].keys() - document["deployments"]["local"].keys()
    assert [key for key in missing if f"# {key} = " not in text] == []


def test_loading_is_quick() -> None:
    """A small part of the time to READY."""
    best = min(_timed(lambda: load_config(str(EXAMPLE), {})) for _ in range(3))
    assert best < 0.03


def _timed(act: Callable[[], Any]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


# ---------------------------------------------------------------------- file over built-in


def test_every_key_arrives() -> None:
    """Tables of the file are put over the defaults key by key."""
    config = load(
        """
        [redis]
        url = "unix:///run/redis.sock?db=2"
        prefix = "{llm}"
        [daemon]
        lease_seconds = 10
        [metrics]
        listen = ""
        stream_maxlen = 0
        [log]
        level = "debug"
        [refusal]
        mode = "off"
        patterns = ["nope"]
        [deployments.big]
        model = "openai/some/model:q4"
        api_base = "http://workshop.lan:8000/v1"
        local = true
        max_tokens = 5
        keep_alive = "1h30m"
        params = { top_k = 3, nested = { a = [1] } }
        input_usd_per_mtok = 0.5
        [chains.mine]
        deployments = ["big", "local"]
        strategy = "latency"
        repair = 1
        fallback = ["default"]
        """
    )
    assert config.redis == RedisConfig(url="unix:///run/redis.sock?db=2", prefix="{llm}")
    assert config.daemon == DaemonConfig(lease_seconds=10)
    assert config.metrics == MetricsConfig(listen="", stream_maxlen=0)
    assert config.log == LogConfig(level="debug")
    assert config.refusal == RefusalConfig(mode="off", patterns=("nope",))
    big = config.deployments["big"]
    assert (big.name, big.provider, big.model_name) == ("big", "openai", "some/model:q4")
    assert (big.max_tokens, big.keep_alive, big.input_usd_per_mtok) == (5, "1h30m", 0.5)
    assert big.params == {"top_k": 3, "nested": {"a": [1]}}
    assert config.chains["mine"] == Chain(
        name="mine", deployments=("big", "local"), strategy="latency", repair=1, fallback=("default",)
    )


def test_builtin_deployment_is_changed_key_by_key() -> None:
    """What the file does not give stays, and the other built-in ones stay."""
    config = load("[deployments.local]\nmodel = 'ollama/llama3.2'\n[chains.balanced]\nretries = 1")
    builtin = load_builtin()
    assert config.deployments["local"] == replace(builtin.deployments["local"], model="ollama/llama3.2")
    assert config.chains["balanced"] == replace(builtin.chains["balanced"], retries=1)
    assert config.deployments.keys() == builtin.deployments.keys()
    assert config.chains.keys() == builtin.chains.keys()


def test_deployment_of_another_provider_inherits_nothing() -> None:
    """An address of Ollama's, or the promise of being local, does not pass to somebody else's model."""
    local = load("[deployments.local]\nmodel = 'groq/llama'").deployments["local"]
    assert (local.api_base, local.local, local.timeout) == (None, False, 30.0)


# ---------------------------------------------------------------------- reload


def test_reload_tells_what_needs_a_restart() -> None:
    """Keys, sockets and the like; where Redis is, deployments, chains and limits change at once."""
    old = load_builtin()
    live = replace(
        old,
        daemon=replace(old.daemon, max_request_bytes=5, drain_seconds=1),
        deployments={},
        chains={},
        refusal=RefusalConfig(mode="off"),
    )
    assert changes_needing_restart(old, live) == []
    new = replace(
        live,
        redis=RedisConfig(url="redis://h", prefix="q"),
        daemon=replace(live.daemon, concurrency=1, lease_seconds=5),
        metrics=MetricsConfig(listen=""),
        log=replace(old.log, level="debug"),
    )
    assert changes_needing_restart(old, new) == [
        "redis.prefix", "daemon.lease_seconds", "metrics.listen", "log.level",
    ]  # fmt: skip


def test_the_schema_describes_the_example_file() -> None:
    """An editor that checks the file by the schema finds nothing."""
    document = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    del document["deployments"]["haiku"]["model"]  # a built-in one: a file need not repeat it
    jsonschema_rs.Draft202012Validator(load_schema("config"), offline=True).validate(document)


def test_closed_folder_in_etc_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that may be there and cannot be seen is not taken for absent."""

    def refuse(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(ConfigError, match=r"config\.toml: cannot be read: Permission denied"):
        load_config(None, {})
