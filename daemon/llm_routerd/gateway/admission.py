"""Who may come in: by a key, or, where there are none, whoever no page in somebody's browser has sent.

A browser lets any page ask an address of this machine.  It does not show the answer to that page, unless a name of
the page's own leads here (DNS rebinding), but what was asked for has been done.  So without a key `Host` has to be
ours, and `Origin` none or ours.  Who has the key cannot be such a page, and is asked for nothing else.
"""

from __future__ import annotations

import hmac
import re
from hashlib import sha256
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from msgspec import Struct

from llm_routerd.config.addresses import read_listen
from llm_routerd.errors import ConfigError
from llm_routerd.gateway.fault import Fault, RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llm_routerd.config.gateway import GatewayConfig

# What holds nothing of anybody: the page, what its browser loads for it, and what a load balancer asks.
OPEN_PATHS: Final = frozenset({"/", "/favicon.ico", "/health", "/openapi.json"})
OPEN_FOLDER: Final = "/assets/"
_OPEN_METHODS = frozenset({"GET", "HEAD"})
_KEYS_IN_QUERY = re.compile(
    r"(x[-_])?(access[-_]|api[-_]?|auth[-_])?(key|token)|auth(orization)?|bearer|password|secret"
)
_ELSEWHERE = frozenset({"cross-site", "same-site"})
_PORTS = {"http": 80, "https": 443}
_HEADER_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+(?:[ \t]*,[ \t]*[A-Za-z0-9!#$%&'*+.^_`|~-]+)*")
_METHODS = "GET, HEAD, POST, DELETE"
_PREFLIGHT_SECONDS = 600
_SHOWN_HEADERS = (
    "ETag, Location, Retry-After, Stream-Closed, Stream-Cursor, Stream-Next-Offset, Stream-Up-To-Date, X-Request-ID"
)


class Caller(Struct, frozen=True, kw_only=True):
    """Who has been let in.

    Attributes:
        name: of his key; "": he has none.
        tenant: whom his requests are accounted to; he sees no other's.  None: the request says.
        others: tenants whose requests are none of his, where he has no key and others have.
    """

    name: str = ""
    tenant: str | None = None
    others: frozenset[str] = frozenset()

    def may_see(self, request_id: str) -> bool:
        """Whether a request is his to follow, to cancel, to have."""
        owner, colon, _ = request_id.partition(":")
        if self.tenant is not None:
            return bool(colon) and owner == self.tenant
        return not (colon and owner in self.others)

    def request_id_for(self, key: str) -> str:
        """The id of a request to which he gives this idempotency key: his tenant's name is before it.

        Raises:
            RefusedError: it would be another tenant's.
        """
        request_id = key if self.tenant is None else f"{self.tenant}:{key}"
        if not self.may_see(request_id):
            raise _refused(403, "forbidden", "an id that begins with the name of a tenant needs a key of that tenant")
        return request_id

    def tenant_for(self, given: Any) -> Any:
        """Whom a request of his is accounted to, which itself gives this `tenant_id`.

        Raises:
            RefusedError: it would be accounted to another tenant.
        """
        if isinstance(given, str) and given in self.others:
            raise _refused(403, "forbidden", "a request that is accounted to this tenant needs a key of that tenant")
        return given if self.tenant is None else self.tenant


class Admission:
    """The rules of one configuration.

    Args:
        config: whose keys, origins and names count.

    Raises:
        ConfigError: it would let in whoever reaches an address beyond this machine, and does not say that it may.
    """

    def __init__(self, config: GatewayConfig) -> None:
        if not config.keys and not config.allow_anonymous and not is_loopback(config.listen):
            raise ConfigError(
                f"gateway.listen = {config.listen!r}: whoever reaches this address could ask without a key; "
                "configure [gateway.keys.<name>], listen on 127.0.0.1, or set gateway.allow_anonymous = true"
            )
        # A key that is configured and missing lets nobody in, and makes nobody's key superfluous.
        self._callers = [
            (_digest(key.key), Caller(name=name, tenant=key.tenant))
            for name, key in config.keys.items()
            if key.key is not None
        ]
        others = frozenset(key.tenant for key in config.keys.values() if key.tenant is not None)
        self._anonymous = None if config.keys and not config.allow_anonymous else Caller(others=others)
        self._wants_keys = bool(config.keys)
        self._hosts = frozenset(host.lower() for host in config.hosts)
        self._origins = frozenset(origin.lower() for origin in config.allow_origins)

    def admit(self, headers: Mapping[str, str], query: Iterable[str], method: str, path: str) -> Caller:
        """Whoever asks for this, given the names of what stands in the query.

        Args:
            headers: looked up without regard to case.
            query: names of parameters.
            method: of HTTP, in capitals.
            path: decoded, without the query.

        Raises:
            RefusedError: 400: a key stands in the query; 401: he needs a key, or has none of ours; 403: a page of
                another origin asks; 421: by a name that is not ours.  The message holds nothing of a key.
        """
        if any(_KEYS_IN_QUERY.fullmatch(name.lower()) for name in query):
            raise _refused(
                400,
                "invalid_request",
                "a key, or what may be one, stands in the address, where logs and histories keep it; it belongs in the "
                "header `Authorization: Bearer …` or `x-api-key`",
            )
        given = _keys_given(headers)
        caller = self._holder(given) if given and self._wants_keys else self._anonymous
        if method in _OPEN_METHODS and is_open(path):
            return caller or Caller()
        if caller is None:
            told = "this key is none of the gateway's" if given else "no key is given"
            raise _refused(
                401, "unauthorized", f"{told}; it is sent as `Authorization: Bearer …` or `x-api-key` (gateway.keys)"
            )
        if not caller.name:
            self._check_sender(headers)
        return caller

    def _holder(self, given: list[str]) -> Caller | None:
        """Whose key it is, in a time that does not depend on it."""
        found = None
        for digest in map(_digest, given):
            for known, caller in self._callers:
                if hmac.compare_digest(known, digest) and found is None:
                    found = caller
        return found

    def _check_sender(self, headers: Mapping[str, str]) -> None:
        host = headers.get("Host")
        if host is not None and not self._is_ours(host):
            told = (
                "this name is not the gateway's; names under which it may be asked without a key are in gateway.hosts"
            )
            raise _refused(421, "forbidden", told)
        origin = headers.get("Origin")
        if origin is not None and not self._may_ask(origin) and not _is_same(origin, host):
            raise _elsewhere()
        # What a page has its browser load (an image, a frame, a script) may come without an Origin.
        site, kind = headers.get("Sec-Fetch-Site"), headers.get("Sec-Fetch-Dest")
        if origin is None and site in _ELSEWHERE and kind != "document" and "*" not in self._origins:
            raise _elsewhere()

    def _is_ours(self, host: str) -> bool:
        parts = _authority(host)
        if parts is None:
            return False
        name = parts[0].removesuffix(".")
        return name == "localhost" or name.endswith(".localhost") or name in self._hosts or _is_address(name)

    def _may_ask(self, origin: str) -> bool:
        return "*" in self._origins or origin.lower() in self._origins

    def cors(self, headers: Mapping[str, str]) -> dict[str, str]:
        """What an answer's headers say to a browser; empty: nothing, and the page will not be shown the answer."""
        origin = headers.get("Origin")
        if not self._origins:
            return {}
        if origin is None or not self._may_ask(origin):
            return {"Vary": "Origin"}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": _SHOWN_HEADERS,
            "Vary": "Origin",
        }

    def preflight(self, headers: Mapping[str, str]) -> dict[str, str] | None:
        """The headers of the answer (204) to a browser that asks with OPTIONS whether it may; None: it does not ask.

        Raises:
            RefusedError: 403: it may not.
        """
        if "Access-Control-Request-Method" not in headers or "Origin" not in headers:
            return None
        told = self.cors(headers)
        if "Access-Control-Allow-Origin" not in told:
            raise _elsewhere()
        wanted = headers.get("Access-Control-Request-Headers", "")
        allowed = {"Access-Control-Allow-Headers": wanted} if _HEADER_NAMES.fullmatch(wanted) else {}
        return {
            **told,
            **allowed,
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Max-Age": str(_PREFLIGHT_SECONDS),
        }


def is_open(path: str) -> bool:
    """Whether a path is shown (GET, HEAD) to whoever asks."""
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)


def is_loopback(listen: str) -> bool:
    """Whether only this machine reaches an address; of a name other than localhost that is not known.

    Raises:
        ConfigError: `listen` is no address.
    """
    host, _ = read_listen(listen, "gateway.listen")
    if host is None:
        return False
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _keys_given(headers: Mapping[str, str]) -> list[str]:
    scheme, _, credentials = headers.get("Authorization", "").strip().partition(" ")
    bearer = credentials.strip() if scheme.lower() == "bearer" else ""
    return [key for key in (bearer, headers.get("x-api-key", "").strip()) if key]


def _digest(key: str) -> bytes:
    """Of one length, whatever the key's."""
    return sha256(key.encode("utf-8", "surrogatepass")).digest()


def _authority(text: str, scheme: str = "http") -> tuple[str, int] | None:
    """Name in small letters, without brackets, and port; None: it is no authority."""
    try:
        parts = urlsplit(f"{scheme}://{text}")
        name, port = parts.hostname, parts.port
    except ValueError:
        return None
    if parts.netloc != text or "@" in text or not name:
        return None
    return name, _PORTS[scheme] if port is None else port


def _is_same(origin: str, host: str | None) -> bool:
    """Whether a page was loaded from the name and port that it asks now.

    The scheme is not compared, but for the port that it stands for: TLS may end before us.
    """
    scheme, separator, authority = origin.lower().partition("://")
    if not separator or scheme not in _PORTS or host is None:
        return False
    mine = _authority(host, scheme)
    return mine is not None and _authority(authority, scheme) == mine


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _elsewhere() -> RefusedError:
    return _refused(403, "forbidden", "pages of this origin may not ask; those that may are in gateway.allow_origins")


def _refused(status: int, code: str, told: str) -> RefusedError:
    return RefusedError(Fault(status=status, code=code, message=told))
