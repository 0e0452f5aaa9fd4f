"""What the configuration takes from the environment, from files and from systemd; secrets stay secret."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from llm_routerd.config.tree import RedisConfig
from llm_routerd.errors import ConfigError
from llm_routerd.protocol.schema_files import load_schema
from llm_routerd.routing.eligibility import Need, ineligibility
from tests.config.configs import error, load, load_builtin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = "sk-xyzzyplugh"


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"LLM_ROUTERD_LOG_LEVEL": "loud"}, "LLM_ROUTERD_LOG_LEVEL: expected one of debug, info, warning, error"),
        ({"REDIS_URL": f"http://:{SECRET}@h"}, "REDIS_URL: expected redis://"),
        ({"OLLAMA_API_BASE": "host:port"}, "OLLAMA_API_BASE: expected an address like"),
        ({"OLLAMA_MODEL": "a b"}, "OLLAMA_MODEL: expected provider/model"),
        ({"OLLAMA_API_BASE": "ftp://host"}, "OLLAMA_API_BASE: expected an address like"),
    ],
)
def test_unsound_environment_is_told_as_such(environ: dict[str, str], message: str) -> None:
    """Whoever set a variable is not sent to the file."""
    told = error("", **environ)
    assert told.startswith(message)
    assert SECRET not in told


@pytest.mark.parametrize(
    "text",
    [
        "[redis]\nurl = '${env:S}'",
        "[redis]\nprefix = '${env:S} '",
        "[log]\nlevel = '${env:S}'",
        "[deployments.x]\nmodel = '${env:S}'",
        "[deployments.x]\nmodel = 'a/b'\napi_base = '${env:S}'",
        "[deployments.x]\nmodel = 'a/b'\ntimeout = '${env:S}'",
        "[refusal]\npatterns = '${env:S}'",
        "[daemon]\nconcurrency = '${env:S}'",
        "[deployments.x]\nmodel = 'a/b'\nparams = '${env:S}'",
        "[deployments.x]\nmodel = 'a/b'\nkeep_alive = '${env:S}'",
    ],
)
def test_no_error_quotes_a_secret(text: str) -> None:
    """What a reference brought is in no message, wherever it stands."""
    assert SECRET not in error(text, S=SECRET)


# ---------------------------------------------------------------------- references and keys


def test_references_are_replaced(tmp_path: Path) -> None:
    """Alone, embedded and several in one string; trailing newlines of files are dropped."""
    (tmp_path / "password").write_text("p%20w\n\n")
    config = load(
        f"""
        [redis]
        url = "redis://:${{file:{tmp_path}/password}}@${{env:HOST}}:6379/0"
        [deployments.x]
        model = "groq/m"
        api_key = "${{credential:groq}}"
        """,
        HOST="h",
        CREDENTIALS_DIRECTORY=_credentials(tmp_path, groq="gk\n"),
    )
    assert config.redis.url == "redis://:p%20w@h:6379/0"
    assert config.deployments["x"].api_key == "gk"


@pytest.mark.parametrize("kind", ["env", "file", "credential", "sekret"])
def test_key_where_its_name_belongs_is_not_quoted(kind: str) -> None:
    """It is refused, not taken for the name of something that is missing."""
    told = error(f"[deployments.x]\nmodel = 'groq/m'\napi_key = '${{{kind}:sk-ant-sekret/1}}'")
    assert told.startswith("deployments.x.api_key: ")
    assert "sekret" not in told


@pytest.mark.parametrize(
    "reference",
    [
        "${env:gsk_s3kretS3kretS3kretS3kretS3kretS3kret}",
        "${credential:gsk_s3kretS3kretS3kretS3kretS3kretS3kret}",
        "${credential:sk-ant-api03-s3kretS3kretS3kretS3kret}",
        "${credential:sk-" + "s3kret" * 100 + "}",
        "${credential:sk-ant-S3kret}",
        "${credential:sk-ant-skret-3kret}",
        "${credential:a3kreta3kreta3kret0123}",
        "${env:S3KRETPW3kret}",
        "${env:s3kret}",
    ],
)
def test_key_that_looks_like_a_name_is_not_quoted_either(tmp_path: Path, reference: str) -> None:
    """It leads to nothing, and neither `check` nor an event of its chain nor an error shows it."""
    text = f"[deployments.x]\nmodel = 'groq/m'\napi_key = '{reference}'\n"
    for directory in ("", str(tmp_path)):
        deployment = load(text, CREDENTIALS_DIRECTORY=directory).deployments["x"]
        assert deployment.key_missing == "api_key"
        assert ineligibility(deployment, Need()) == "no api_key"
        assert "3kret" not in error(f"[redis]\nurl = '{reference}'", CREDENTIALS_DIRECTORY=directory)


@pytest.mark.parametrize("kind", ["env", "credential"])
@pytest.mark.parametrize(
    "key",
    [
        "S3CRETPWABCDEF0123456789ABCDEF012345",
        "AKIAIOSFODNN7EXAMPLE",
        "S3CRETPWABCDEF01",
        "gsk_secret",
        "hf_abcdefghijkl",
        "xai-abcdefghijkl",
        "AIzaSyabcdefghijkl",
        "0123abcd",
        "abcdefghijklmnopqrstuvwxyz",
        "KEY_" * 20,
    ],
)
def test_only_what_is_certainly_a_name_is_quoted(kind: str, key: str) -> None:
    """Not even keys in capitals or in small letters alone, nor the part of one behind its beginning."""
    text = f"[deployments.x]\nmodel = 'groq/m'\napi_key = '${{{kind}:{key}}}'\n"
    try:
        assert load(text).deployments["x"].key_missing == "api_key"
    except ConfigError as caught:
        assert key not in str(caught)  # noqa: PT017 - a name that no variable can have is refused
    told = error(f"[redis]\nurl = '${{{kind}:{key}}}'")
    assert told.startswith("redis.url: ")
    assert key not in told


@pytest.mark.parametrize(
    "reference",
    ["${env:GROQ_API_KEY_2}", "${env:_TOKEN}", "${credential:redis_url}", "${credential:groq.api-key2}"],
)
def test_what_is_certainly_a_name_is_quoted(reference: str) -> None:
    """So that who forgot a variable or a credential learns which."""
    config = load(f"[deployments.x]\nmodel = 'groq/m'\napi_key = '{reference}'")
    assert config.deployments["x"].key_missing == reference.partition(":")[2][:-1]


@pytest.mark.parametrize("key", ["deployments.x.model", "redis.prefix", "metrics.channel", "metrics.listen"])
def test_reference_is_refused_where_the_value_is_told_to_others(key: str) -> None:
    """Events, metrics, `check` and names of keys show these values; nothing is looked up for them."""
    table, _, name = key.rpartition(".")
    told = error(f"[{table}]\n{name} = 'ollama/${{env:S}}'", S=SECRET)
    assert told.startswith(f"{key}: a reference has no place here")
    assert SECRET not in told


def test_long_name_is_a_name(tmp_path: Path) -> None:
    """Of a variable in capitals, and of what is there."""
    name = "ANTHROPIC_API_KEY_OF_THE_WORKSHOP_IN_THE_CELLAR"
    config = load(f"[deployments.x]\nmodel = 'groq/m'\napi_key = '${{env:{name}}}'")
    assert config.deployments["x"].key_missing == name
    long = name.lower()
    (tmp_path / long).write_text("sekret")
    for reference in (f"${{env:{long}}}", f"${{credential:{long}}}"):
        config = load(
            f"[deployments.x]\nmodel = 'groq/m'\napi_key = '{reference}'",
            CREDENTIALS_DIRECTORY=str(tmp_path),
            **{long: "sekret"},
        )
        assert config.deployments["x"].api_key == "sekret"


def _keys_of(node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every key of a configuration that is no table; `x` for a name of one's own."""
    schema = load_schema("config")
    tables = dict(node.get("properties", {}))
    if isinstance(node.get("additionalProperties"), dict):
        tables["x"] = node["additionalProperties"]
    for name, child in tables.items():
        each = schema["$defs"][child["$ref"].rpartition("/")[2]] if "$ref" in child else child
        if each.get("properties") or isinstance(each.get("additionalProperties"), dict):
            yield from _keys_of(each, (*path, name))
        else:
            yield (*path, name)


def test_no_error_quotes_a_secret_whatever_key_it_stands_at() -> None:
    """Every key of the schema, alone and within a value that is almost one, as text, in a list and in a table."""
    quoted, refused = [], 0
    keys = [path for path in _keys_of(load_schema("config")) if len(path) > 1]
    assert ("deployments", "x", "api_base") in keys
    for path in keys:
        needed = {"deployments": "model = 'groq/m'", "chains": "deployments = ['local']"}.get(path[0], "")
        head = f"[{'.'.join(path[:-1])}]\n" + (needed if not needed.startswith(path[-1]) else "")
        for value in ("${env:S}", "a/${env:S} b", "redis://u:${env:S}@h:x", "http://${env:S}:x"):
            for form in (f"'{value}'", f"['{value}']", f"{{ a = '{value}' }}"):
                try:
                    load(f"{head}\n{path[-1]} = {form}\n", S=SECRET)
                except ConfigError as caught:
                    refused += 1
                    quoted += [(path, form)] if SECRET in str(caught) else []
    assert not quoted
    assert refused > len(keys)


@pytest.mark.parametrize("key", ["deployments", "fallback"])
def test_reference_in_a_chain_is_refused_and_not_resolved(key: str) -> None:
    """Names are quoted, so no secret may become one."""
    others = "" if key == "deployments" else "deployments = ['local']\n"
    told = error(f"[chains.x]\n{others}{key} = ['${{env:KEY}}']", KEY="sekret")
    assert told.startswith(f"chains.x.{key}: a reference has no place in a chain")
    assert "sekret" not in told


def test_what_a_reference_brings_is_not_searched_again() -> None:
    """A password may look like a reference."""
    config = load("[deployments.x]\nmodel = 'groq/m'\napi_key = '${env:A}'", A="${env:B}")
    assert config.deployments["x"].api_key == "${env:B}"


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff", b"x" * 70_000])
def test_file_that_is_no_secret(tmp_path: Path, content: bytes) -> None:
    """Empty, binary or huge files are refused by name."""
    path = tmp_path / "secret"
    path.write_bytes(content)
    assert str(path) in error(f"[redis]\nurl = '${{file:{path}}}'")


def test_directory_is_no_secret(tmp_path: Path) -> None:
    """What cannot be read is told by name and reason."""
    assert "cannot be read" in error(f"[redis]\nurl = '${{file:{tmp_path}}}'")


@pytest.mark.parametrize("reference", ["${env:NOPE}", "${file:/nope}", "${credential:nope}"])
def test_missing_key_disables_its_deployment(reference: str) -> None:
    """One that names its key and does not get it is configured, and says what is missing."""
    config = load(f"[deployments.x]\nmodel = 'groq/m'\napi_key = '{reference}'\n[chains.x]\ndeployments = ['x']")
    deployment = config.deployments["x"]
    assert deployment.api_key is None
    assert deployment.key_missing is not None
    assert deployment.key_missing in reference


def test_cloud_deployments_without_a_key_are_disabled() -> None:
    """They say which variable would enable them; the local one needs none."""
    config = load_builtin(ANTHROPIC_API_KEY="", OPENAI_API_KEY=SECRET)
    missing = {name: deployment.key_missing for name, deployment in config.deployments.items()}
    assert missing == {
        "local": None,
        "haiku": "ANTHROPIC_API_KEY",
        "sonnet": "ANTHROPIC_API_KEY",
        "sonnet-4": "ANTHROPIC_API_KEY",
        "gpt-4o": None,
    }
    assert config.deployments["gpt-4o"].api_key == SECRET


def test_credentials_of_systemd_are_taken_without_being_named(tmp_path: Path) -> None:
    """`LoadCredential=anthropic_api_key` is enough; the variable wins over it."""
    directory = _credentials(tmp_path, anthropic_api_key="from-systemd\n")
    config = load_builtin(CREDENTIALS_DIRECTORY=directory)
    assert config.deployments["haiku"].api_key == "from-systemd"
    assert (config.deployments["haiku"].key_missing, config.deployments["gpt-4o"].api_key) == (None, None)
    config = load_builtin(CREDENTIALS_DIRECTORY=directory, ANTHROPIC_API_KEY="from-environment")
    assert config.deployments["haiku"].api_key == "from-environment"


def test_keys_of_the_environment_go_to_no_other_address() -> None:
    """A key for OpenAI is not sent to whoever speaks its protocol; such a server needs none."""
    config = load(
        """
        [deployments.mine]
        model = "openai/m"
        api_base = "http://workshop.lan:8000/v1"
        [deployments.trap]
        model = "openai/m"
        api_base = "https://api.openai.com.evil.example/v1"
        [deployments.home]
        model = "openai/m"
        api_base = "https://api.openai.com/v1"
        [deployments.proxied]
        model = "anthropic/m"
        api_base = "http://proxy.lan"
        api_key = "own"
        """,
        OPENAI_API_KEY=SECRET,
        ANTHROPIC_API_KEY=SECRET,
    )
    keys = {name: config.deployments[name].api_key for name in ("mine", "trap", "home", "proxied")}
    assert keys == {"mine": None, "trap": None, "home": SECRET, "proxied": "own"}
    assert [name for name in keys if config.deployments[name].key_missing] == []


def test_no_secret_is_in_a_repr() -> None:
    """The tree may be logged."""
    config = load(
        """
        [deployments.x]
        model = "groq/m"
        api_key = "${env:S}"
        api_base = "http://user:${env:S}@h"
        params = { token = "${env:S}" }
        """,
        S=SECRET,
        REDIS_URL=f"redis://:{SECRET}@h",
    )
    assert config.deployments["x"].api_key == SECRET
    assert SECRET not in repr(config)


def _credentials(tmp_path: Path, **secrets: str) -> str:
    directory = tmp_path / "credentials"
    directory.mkdir()
    for name, secret in secrets.items():
        (directory / name).write_text(secret)
    return str(directory)


# ---------------------------------------------------------------------- environment over file


def test_environment_wins_over_the_file() -> None:
    """For the variables that the documentation names."""
    config = load(
        "[redis]\nurl = 'redis://file'\nprefix = 'p'\n[log]\nlevel = 'error'\n[deployments.haiku]\napi_key = 'file'",
        REDIS_URL="rediss://environment/1",
        LLM_ROUTERD_LOG_LEVEL="WARNING",
        ANTHROPIC_API_KEY="environment",
    )
    assert config.redis == RedisConfig(url="rediss://environment/1", prefix="p")
    assert config.log.level == "warning"
    assert config.deployments["haiku"].api_key == "environment"


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://h:1234", "http://h:1234"),
        ("http://h:1234/", "http://h:1234"),
        ("https://h/ollama/", "https://h/ollama"),
        ("h", "http://h:11434"),
        ("h:1234", "http://h:1234"),
        ("0.0.0.0", "http://127.0.0.1:11434"),  # noqa: S104 - nothing is bound to it
        ("0.0.0.0:1234", "http://127.0.0.1:1234"),
        ("http://0.0.0.0:1234", "http://127.0.0.1:1234"),
        (":1234", "http://127.0.0.1:1234"),
        ("[::]:1234", "http://[::1]:1234"),
        ("[fe80::1]", "http://[fe80::1]:11434"),
        ("http://h", "http://h"),
        ("  h  ", "http://h:11434"),
        ("", "http://127.0.0.1:11434"),
    ],
)
def test_ollama_address_as_its_users_have_it(given: str, base: str) -> None:
    """With and without scheme and port; an address to listen on means this machine."""
    assert load_builtin(OLLAMA_API_BASE=given).deployments["local"].api_base == base


def test_ollama_variables_touch_local_and_those_without_an_address() -> None:
    """A second box keeps the address that the file gives, and every other one its model."""
    config = load(
        """
        [deployments.local]
        api_base = "http://file.lan:1"
        [deployments.box]
        model = "ollama/a"
        api_base = "http://box.lan:11434"
        [deployments.here]
        model = "ollama_chat/b"
        """,
        OLLAMA_API_BASE="env.lan",
        OLLAMA_MODEL="ollama/qwen3:4b",
    )
    found = {
        name: (config.deployments[name].api_base, config.deployments[name].model) for name in ("local", "box", "here")
    }
    assert found == {
        "local": ("http://env.lan:11434", "ollama/qwen3:4b"),
        "box": ("http://box.lan:11434", "ollama/a"),
        "here": ("http://env.lan:11434", "ollama_chat/b"),
    }


def test_ollama_variables_leave_another_local_alone() -> None:
    """Where `local` is a server of another kind, Ollama's variables are none of its business."""
    config = load(
        "[deployments.local]\nmodel = 'openai/m'\napi_base = 'http://h:1/v1'",
        OLLAMA_API_BASE="http://env:1",
        OLLAMA_MODEL="x",
    )
    assert (config.deployments["local"].model, config.deployments["local"].api_base) == ("openai/m", "http://h:1/v1")
