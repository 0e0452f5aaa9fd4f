"""Addresses are read strictly, and nothing of one that may be a password is ever shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_routerd.cli.main import main
from llm_routerd.client import Client
from llm_routerd.config.addresses import shown_url
from llm_routerd.errors import BrokerError
from tests.config.configs import error, load

if TYPE_CHECKING:
    from collections.abc import Sequence

SOUND = [
    "redis://h:6379/0",
    "redis://127.0.0.1",
    "redis://[::1]:6379/3",
    "redis://my_redis-1.lan/",
    "redis://:p%40ss%2Fw%3Ard%251@h:1/2",
    "rediss://me:s3@h:1/2?ssl_ca_certs=/etc/ca.pem&ssl_cert_reqs=none&ssl_check_hostname=false",
    "unix:///run/redis.sock?db=2",
    "unix://me:s3@/run/redis.sock",
    "redis://h/0?username=me&password=s3",
]
UNSOUND = [
    ("redis://:p@ss/w:rd%1@host:6379/0", "percent-encode the password"),
    ("redis://:p@ss@host:6379/0", "percent-encode the password"),
    ("redis://:pass/word@host:6379/0", "percent-encode the password"),
    ("redis://:1234/5@host:6379/0", "percent-encode the password"),
    ("redis://:pass?word@host:6379/0", "percent-encode the password"),
    ("redis://:12#word@host:6379/0", "percent-encode the password"),
    ("redis://:pass%word@host:6379/0", "percent-encode the password"),
    ("redis://:pass[word@host:6379/0", "percent-encode the password"),
    ("redis://host:12#pass", "`#`"),
    ("redis://host:pass/0", "its host or its port"),
    ("redis://host:/0", "its host or its port"),
    ("redis://host:99999/0", "its port is above 65535"),
    ("redis://[::pass]:6379/0", "its host"),
    ("redis://[::1:6379/0", "its host"),
    ("redis://[v1.pass]:6379/0", "IPv6"),
    ("redis://host/abc", "not a number"),
    ("redis://host/1/2", "not a number"),
    ("redis://host/0?db=1", "`db` is given twice"),
    ("redis://host?db=x", "`db` has no valid value"),
    ("redis://host/0?foo=bar", "`foo` is not known; these are: db, "),
    ("redis://host/0?max_connections=5", "`max_connections` is not known"),
    ("redis://host/0?client_name=x", "`client_name` is not known"),
    ("redis://host/0?protocol=3", "`protocol` is not known"),
    ("rediss://host/0?ssl_ca_cert=", "`ssl_ca_cert` is not known"),
    ("rediss://host/0?ssl_ca_certs=", "`ssl_ca_certs` has no valid value"),
    ("redis://host/0?ssl_ca_certs=/ca", "`ssl_ca_certs` goes with rediss:// only"),
    ("redis://host/0?pa55=pass", "the option is not known"),
    ("unix://run/redis.sock", "three slashes"),
    ("redis://host:6379/0\n", "a line break"),
    ("redis:host", "redis://host:port/db"),
]
SECRETS = ("pass", "p@ss", "ss/w", "w:rd", "word", "1234", "pa55")


def assert_tells_without_quoting(told: str, message: str) -> None:
    """The message is there, and no part of the address in it."""
    assert message in told
    told = told.replace("password", "")  # our own word, as are `ssl_password` and its like
    assert not [secret for secret in SECRETS if secret in told]


@pytest.mark.parametrize("url", SOUND)
def test_sound_url_is_taken(url: str) -> None:
    """By the configuration and by the client alike."""
    assert load(f"[redis]\nurl = '{url}'").redis.url == url
    Client(url)


@pytest.mark.parametrize(("url", "message"), UNSOUND)
def test_unsound_url_is_refused_and_not_quoted(url: str, message: str) -> None:
    """In the file, in the environment and by the client, each time with the remedy."""
    if url.isprintable() and url.startswith(("redis://", "rediss://", "unix://")):
        told = error(f"[redis]\nurl = '{url}'")
        assert told.startswith("redis.url: ")
        assert_tells_without_quoting(told, message)
        told = error("", REDIS_URL=url)
        assert told.startswith("REDIS_URL: ")
        assert_tells_without_quoting(told, message)
    with pytest.raises(BrokerError) as caught:
        Client(url)
    assert_tells_without_quoting(str(caught.value), message)
    assert shown_url(url) == "(a URL that cannot be read)"


@pytest.mark.parametrize("command", [["serve"], ["check"], ["submit", "x"], ["follow", "x"], ["cancel", "x"]])
@pytest.mark.parametrize(("url", "message"), UNSOUND)
def test_every_command_ends_with_78_at_an_unsound_url(
    capsys: pytest.CaptureFixture[str], command: Sequence[str], url: str, message: str
) -> None:
    """One line, no traceback."""
    assert main([*command, "--redis", url]) == 78
    shown = "".join(capsys.readouterr())
    assert len(shown.splitlines()) == 1
    assert_tells_without_quoting(shown, message)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("http://me:p@ss/w:rd@host:1", "percent-encode the password"),
        ("http://me:pass/word@host:1", "percent-encode the password"),
        ("http://me:1234/5@host:1", "percent-encode the password"),
        ("http://host:pass", "its host or its port"),
        ("http://[::pass]:1", "its host"),
        ("http://:80", "expected an address"),
    ],
)
def test_unsound_api_base_is_refused_and_not_quoted(base: str, message: str) -> None:
    """A user in it is read as strictly as in the Redis URL."""
    told = error(f"[deployments.local]\napi_base = '{base}'")
    assert told.startswith("deployments.local.api_base: ")
    assert_tells_without_quoting(told, message)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://:secret@h/0", "redis://***@h/0"),
        ("rediss://me:secret@h:1/2?ssl_cert_reqs=none", "rediss://***@h:1/2"),
        ("redis://h/0?password=secret", "redis://h/0"),
        ("unix:///run/redis.sock?password=secret", "unix:///run/redis.sock"),
        ("redis://me@h", "redis://***@h"),
        ("redis://[::1]:1/0", "redis://[::1]:1/0"),
    ],
)
def test_shown_url_has_neither_user_nor_password(url: str, shown: str) -> None:
    """Nothing of what stands between `//` and `@`, and no option."""
    assert shown_url(url) == shown


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_any_password_is_either_taken_whole_or_refused(password: str) -> None:
    """What is shown of a URL does not depend on the password in it."""
    url = f"redis://:{password}@host:6379/0"
    assert shown_url(url) in {"redis://***@host:6379/0", "(a URL that cannot be read)"}
