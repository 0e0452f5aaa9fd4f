"""Addresses are read strictly, and nothing of one that may be a password is ever shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_routerd.cli.main import main
from llm_routerd.client import Client
from llm_routerd.config.addresses import RedisAddress, read_listen, read_redis_url, shown_url
from llm_routerd.errors import BrokerError, ConfigError
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
    "redis+sentinel://a,b:1,[::1]:2/my-queue",
    "redis+sentinel://me:p%40ss%2Cw%3Ard@a:26379,b/queue.1/3",
    "redis+sentinel://a/queue?db=3&sentinel_username=me&sentinel_password=s3",
    "rediss+sentinel://a/queue/0?ssl_ca_certs=/etc/ca.pem",
    "redis+cluster://a,b:1,[::1]",
    "rediss+cluster://me:s3@a:7000/0?ssl_cert_reqs=none",
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
    ("redis://a..b", "a part between dots is empty or too long"),
    (f"redis://{'a' * 64}:1", "a part between dots is empty or too long"),
    ("redis+sentinel://a,b", "the name of the service after the hosts is missing"),
    ("redis+sentinel://a,b/", "the name of the service after the hosts is missing"),
    ("redis+sentinel://a,b//0", "the name of the service after the hosts is missing"),
    ("redis+sentinel://a/my%20queue", "the name of the service after the hosts is missing, or not valid"),
    ("redis+sentinel://a/queue/abc", "not a number"),
    ("redis+sentinel://a/queue/1/2", "not a number"),
    ("redis+sentinel://a/queue/1?db=2", "`db` is given twice"),
    ("redis+sentinel://a,/queue", "a host is missing"),
    ("redis+sentinel:///queue", "a host is missing"),
    ("redis+sentinel://a,:1/queue", "a host is missing"),
    ("redis+sentinel://a,a:26379/queue", "names a server twice"),
    ("redis+sentinel://a:1,b:99999/queue", "its port is above 65535"),
    ("redis+sentinel://a:1,b:pass/queue", "its host or its port"),
    ("redis+sentinel://a:1,[::pass]/queue", "its host"),
    ("redis+sentinel://a:1,b..c/queue", "a part between dots is empty or too long"),
    ("redis+sentinel://:p@ss@a,b/queue", "percent-encode the password"),
    ("redis+sentinel://:pass/word@a,b/queue", "percent-encode the password"),
    ("redis+sentinel://:pass%word@a,b/queue", "percent-encode the password"),
    ("redis+sentinel://a/queue?sentinel_password=", "`sentinel_password` has no valid value"),
    ("redis+sentinel://a/queue?ssl_ca_certs=/ca", "`ssl_ca_certs` goes with rediss:// only"),
    ("redis+cluster://a/1", "a Cluster has only the database 0"),
    ("redis+cluster://a/queue", "not a number"),
    ("redis+cluster://", "a host is missing"),
    ("redis+cluster://a,a:6379", "names a server twice"),
    ("redis+cluster://a?db=1", "a Cluster has only the database 0"),
    ("redis+cluster://a?sentinel_password=pass", "`sentinel_password` goes with redis+sentinel:// only"),
    ("redis://a,b", "its host or its port"),
    ("redis://a?sentinel_username=pass", "`sentinel_username` goes with redis+sentinel:// only"),
]
FORMS = ("redis://", "rediss://", "unix://", "redis+sentinel://", "redis+cluster://")
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
    if url.isprintable() and url.startswith(FORMS):
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
        ("redis+sentinel://:secret@a,b:1/queue/2?sentinel_password=secret", "redis+sentinel://***@a,b:1/queue/2"),
        ("rediss+cluster://me:secret@a,[::1]:2?ssl_cert_reqs=none", "rediss+cluster://***@a,[::1]:2"),
    ],
)
def test_shown_url_has_neither_user_nor_password(url: str, shown: str) -> None:
    """Nothing of what stands between `//` and `@`, and no option."""
    assert shown_url(url) == shown


def test_url_of_several_servers_is_one_of_a_server_and_whom_to_ask() -> None:
    """What redis-py reads has nothing of the Sentinels' own."""
    read = read_redis_url("rediss+sentinel://me:p%40s@a,[::1]:7/q/3?sentinel_password=s%2F4&ssl_ca_certs=/ca%20s.pem")
    assert read == RedisAddress(
        url="rediss://me:p%40s@a/3?ssl_ca_certs=%2Fca+s.pem",
        kind="sentinel",
        nodes=(("a", 26379), ("::1", 7)),
        service="q",
        password="s/4",
    )
    assert read_redis_url("redis+cluster://a:7000,b").nodes == (("a", 7000), ("b", 6379))


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_any_password_is_either_taken_whole_or_refused(password: str) -> None:
    """What is shown of a URL does not depend on the password in it."""
    url = f"redis://:{password}@host:6379/0"
    assert shown_url(url) in {"redis://***@host:6379/0", "(a URL that cannot be read)"}


@pytest.mark.parametrize("listen", ["9464", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "::1:9464", "a:-1", "a:٣"])
def test_a_malformed_address_is_a_configuration_error(listen: str) -> None:
    """The error names the key."""
    with pytest.raises(ConfigError, match=r"metrics\.listen"):
        read_listen(listen, "metrics.listen")


@pytest.mark.parametrize(
    ("listen", "address"),
    [("127.0.0.1:9464", ("127.0.0.1", 9464)), ("[::1]:80", ("::1", 80)), (":9464", (None, 9464))],
)
def test_addresses_are_read(listen: str, address: tuple[str | None, int]) -> None:
    """IPv4, IPv6 and all addresses."""
    assert read_listen(listen, "metrics.listen") == address
