"""The addresses of a configuration, read strictly: what is almost one is refused, and never quoted.

A password that is not percent-encoded moves where an address's host begins, so that part of it would be looked
up as a name, connected to and logged.  Hence no message here holds a part of the address but an option's name.
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv6Address
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from llm_routerd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_PORT = 65_535
_ENCODE = "percent-encode the password (`@` is %40, `/` is %2F, `:` is %3A, `?` is %3F, `#` is %23, `%` is %25)"
_REDIS_FORM = (
    "expected redis://host:port/db, rediss://…, unix:///path, redis+sentinel://host:port,…/service/db or "
    "redis+cluster://host:port,…"
)
_SENTINEL_FORM = "expected redis+sentinel://host:port,host:port/service/db"
_CLUSTER_FORM = "expected redis+cluster://host:port,host:port"
_HTTP_FORM = "expected an address like http://127.0.0.1:11434"
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HOST_AND_PORT = re.compile(r"(\[[^\[\]]*\]|[\w.-]*)(?::(\d{1,5}))?", re.ASCII)
_DATABASE = re.compile(r"\d{1,9}", re.ASCII)
_OPTION_NAME = re.compile(r"[A-Za-z_]{1,40}")
_SERVICE = re.compile(r"[A-Za-z0-9._-]{1,128}")
_ANYTHING = re.compile(r".+")
_SCHEMES = {  # and what each is to redis-py
    "redis": "redis",
    "rediss": "rediss",
    "unix": "unix",
    "redis+sentinel": "redis",
    "rediss+sentinel": "rediss",
    "redis+cluster": "redis",
    "rediss+cluster": "rediss",
}
_PORTS = {"sentinel": 26_379, "cluster": 6379}
# The TLS ones bear redis-py's names.  Whatever else it takes from a URL would overrule what we need of it.
_OPTIONS = {
    "db": _DATABASE,
    "username": _ANYTHING,
    "password": _ANYTHING,
    "sentinel_username": _ANYTHING,
    "sentinel_password": _ANYTHING,
    "ssl_ca_certs": _ANYTHING,
    "ssl_ca_path": _ANYTHING,
    "ssl_certfile": _ANYTHING,
    "ssl_keyfile": _ANYTHING,
    "ssl_password": _ANYTHING,
    "ssl_cert_reqs": re.compile("none|optional|required"),
    "ssl_check_hostname": re.compile("true|false|yes|no|1|0", re.IGNORECASE),
}


class _Authority(NamedTuple):
    """What stands between `//` and the path."""

    credentials: str
    host: str
    port: str


class RedisAddress(NamedTuple):
    """Where a Redis URL leads.

    Attributes:
        url: of one server, as redis-py reads it: where there are several, that of the first.
        kind: "": that server; `sentinel`: the primary that these watch; `cluster`: the node that has what is asked for.
        nodes: host and port of each Sentinel, or of the nodes that may be asked.
        service: what the Sentinels call it.
        username, password: that the Sentinels want; None: none.
    """

    url: str
    kind: str = ""
    nodes: tuple[tuple[str, int], ...] = ()
    service: str = ""
    username: str | None = None
    password: str | None = None


def check_redis_url(url: str) -> None:
    """Check that a URL says where Redis is, and nothing that we would not do.

    Raises:
        ConfigError: what is wrong with it and the remedy; no part of the URL but the name of an option.
    """
    read_redis_url(url)


def read_redis_url(url: str) -> RedisAddress:
    """Read where Redis is.

    Raises:
        ConfigError: as `check_redis_url`.
    """
    parts = _split(url, tuple(_SCHEMES), _REDIS_FORM)
    kind = parts.scheme.partition("+")[2]
    if kind:
        return _several(parts, kind)
    authority = _authority(parts, _REDIS_FORM)
    if parts.scheme == "unix":
        if authority.host or authority.port or parts.path in {"", "/"} or _BAD_PERCENT.search(parts.path):
            raise ConfigError("expected unix:///path, with three slashes")
    else:
        _check_database(parts.path)
    _check_options(parts, has_database=parts.scheme != "unix" and parts.path not in {"", "/"})
    return RedisAddress(url)


def _several(parts: SplitResult, kind: str) -> RedisAddress:
    """A URL that names several servers."""
    form = _SENTINEL_FORM if kind == "sentinel" else _CLUSTER_FORM
    credentials, _, where = parts.netloc.rpartition("@")
    authorities = [_authority(parts._replace(netloc=f"{credentials}@{each}"), form) for each in where.split(",")]
    if not all(each.host for each in authorities):
        raise ConfigError(f"a host is missing; {form}")
    nodes = tuple((each.host.strip("[]"), int(each.port or _PORTS[kind])) for each in authorities)
    if len(set(nodes)) < len(nodes):
        raise ConfigError(f"names a server twice; {form}")
    service, database = "", parts.path
    if kind == "sentinel":
        service, slash, rest = parts.path[1:].partition("/")
        database = slash + rest
        if not _SERVICE.fullmatch(service):
            raise ConfigError(f"the name of the service after the hosts is missing, or not valid; {_SENTINEL_FORM}")
    _check_database(database)
    options = _check_options(parts, has_database=database not in {"", "/"})
    if kind == "cluster" and int(database.strip("/") or options.get("db", "0")):
        raise ConfigError("a Cluster has only the database 0")
    names = {name: options.pop(name, None) for name in ("sentinel_username", "sentinel_password")}
    at = "@" if "@" in parts.netloc else ""
    one = f"{_SCHEMES[parts.scheme]}://{credentials}{at}{where.split(',')[0]}{database}"
    return RedisAddress(
        url=one + (f"?{urlencode(options)}" if options else ""),
        kind=kind,
        nodes=nodes,
        service=service,
        username=names["sentinel_username"],
        password=names["sentinel_password"],
    )


def _check_database(path: str) -> None:
    if path not in {"", "/"} and not _DATABASE.fullmatch(path[1:]):
        raise ConfigError(f"the database after the last / is not a number; if that is part of a password, {_ENCODE}")


def check_api_base(address: str) -> None:
    """Check that an address says where a model's server is.

    Raises:
        ConfigError: what is wrong with it and the remedy; no part of the address.
    """
    parts = _split(address, ("http", "https"), _HTTP_FORM)
    if not _authority(parts, _HTTP_FORM).host:
        raise ConfigError(_HTTP_FORM)


def read_listen(listen: str, key: str) -> tuple[str | None, int]:
    """Split `host:port`, where something is to listen.

    Args:
        listen: `host:port`, `[v6]:port` or `:port` (all addresses).
        key: which of the configuration's it is, for the message.

    Returns:
        The host, None standing for all addresses, and the port.

    Raises:
        ConfigError: it has no port, or one out of range, or an IPv6 address without brackets.
    """
    host, colon, port = listen.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    sound = colon and port.isascii() and port.isdigit() and int(port[:6]) <= _MOST_PORT
    if not sound or (":" in host and not bracketed):
        raise ConfigError(f'{key} = {listen!r}: expected "host:port", "[v6 address]:port" or ":port"')
    return (host[1:-1] if bracketed else host) or None, int(port)


def shown_url(url: str) -> str:
    """A Redis URL to be shown: without user, password and options, which may hold one."""
    try:
        check_redis_url(url)
    except ConfigError:
        return "(a URL that cannot be read)"
    parts = urlsplit(url)
    credentials, at, where = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{'***' if credentials else ''}{at}{where}{parts.path}"


def _split(text: str, schemes: Sequence[str], form: str) -> SplitResult:
    if not text.isprintable() or " " in text:  # `urlsplit` would drop some of these without a word
        raise ConfigError("holds a blank, a line break or another character that an address cannot have")
    try:
        parts = urlsplit(text)
    except ValueError:  # a bracket that is no IPv6 address's; the original message quotes
        raise ConfigError(f"its host is not valid; {_ENCODE}") from None
    if parts.scheme not in schemes or not text[len(parts.scheme) :].startswith("://"):
        raise ConfigError(form)
    if text.count("@") > 1 or ("@" in text and "@" not in parts.netloc):
        raise ConfigError(f"its `@` does not stand alone before the host: {_ENCODE}")
    if parts.fragment or text.endswith("#"):
        raise ConfigError(f"has a `#`, after which nothing is read: {_ENCODE}")
    return parts


def _authority(parts: SplitResult, form: str) -> _Authority:
    credentials, _, where = parts.netloc.rpartition("@")
    if _BAD_PERCENT.search(credentials):
        raise ConfigError(f"has a `%` without two hexadecimal digits after it: {_ENCODE}")
    match = _HOST_AND_PORT.fullmatch(where)
    if match is None:
        raise ConfigError(f"its host or its port is not valid; {form}; if that is part of a password, {_ENCODE}")
    host, port = match[1], match[2] or ""
    try:
        host.encode("idna")
    except UnicodeError:  # nor could it be looked up
        raise ConfigError(f"its host is not valid: a part between dots is empty or too long; {form}") from None
    if port and int(port) > _MOST_PORT:
        raise ConfigError(f"its port is above {_MOST_PORT}")
    if host.startswith("["):
        try:
            IPv6Address(host[1:-1])
        except AddressValueError:
            raise ConfigError("what stands in brackets is not an IPv6 address") from None
    return _Authority(credentials, host, port)


def _check_options(parts: SplitResult, *, has_database: bool) -> dict[str, str]:
    """The options of a URL; `has_database`: its path says which."""
    seen = {"db"} if has_database else set[str]()
    options = parse_qsl(parts.query, keep_blank_values=True)
    for name, value in options:
        form = _OPTIONS.get(name)
        if form is None:
            quoted = f"`{name}` " if _OPTION_NAME.fullmatch(name) else ""
            raise ConfigError(f"the option {quoted}is not known; these are: {', '.join(_OPTIONS)}")
        if name in seen:
            raise ConfigError(f"the option `{name}` is given twice, or beside what says the same")
        if name.startswith("ssl_") and not parts.scheme.startswith("rediss"):
            raise ConfigError(f"the option `{name}` goes with rediss:// only")
        if name.startswith("sentinel_") and not parts.scheme.endswith("+sentinel"):
            raise ConfigError(f"the option `{name}` goes with redis+sentinel:// only")
        if not form.fullmatch(value):
            raise ConfigError(f"the option `{name}` has no valid value")
        seen.add(name)
    return dict(options)
