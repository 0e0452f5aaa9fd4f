"""Who may come in, and whose page may not."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from llm_routerd.config.gateway import GatewayConfig, GatewayKey
from llm_routerd.errors import ConfigError
from llm_routerd.gateway.admission import Admission, Caller, is_loopback, is_open
from llm_routerd.gateway.fault import Fault, RefusedError

ACME, OPS = "acme-secret-1", "ops-secret-2"
KEYS = {
    "acme": GatewayKey(name="acme", key=ACME, tenant="acme"),
    "ops": GatewayKey(name="ops", key=OPS),
}


def admission(**config: Any) -> Admission:
    """Return the rules of a configuration."""
    return Admission(GatewayConfig(**config))


def admit(
    rules: Admission,
    headers: dict[str, str] | None = None,
    *,
    query: str = "",
    method: str = "POST",
    path: str = "/v1/x",
) -> Caller:
    """Let one in."""
    return rules.admit(CIMultiDict({"Host": "127.0.0.1:8004"} | (headers or {})), query.split(), method, path)


def fault(rules: Admission, headers: dict[str, str] | None = None, **asked: str) -> Fault:
    """Return why one is not let in."""
    with pytest.raises(RefusedError) as caught:
        admit(rules, headers, **asked)
    assert "\n" not in caught.value.fault.message
    return caught.value.fault


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {ACME}"},
        {"Authorization": f"bEaReR   {ACME} "},
        {"X-API-Key": ACME},
        {"Authorization": "Basic eDp5", "x-api-key": ACME},
        {"Authorization": "Bearer none", "x-api-key": ACME},
        {"Authorization": f"Bearer {ACME}", "Origin": "https://evil.example", "Host": "evil.example"},
    ],
)
def test_a_key_says_who_comes(headers: dict[str, str]) -> None:
    """In either header; and who has it is not asked where he comes from."""
    assert admit(admission(keys=KEYS), headers) == Caller(name="acme", tenant="acme")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ACME},
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {ACME}"},
        {"Authorization": f"Bearer {ACME}x"},
        {"Authorization": f"Bearer {ACME[:-1]}"},
        {"Authorization": "Bearer \udcff\udcfe"},
        {"x-api-key": ACME.upper()},
        {"x-api-key": ""},
        {"Cookie": f"key={ACME}"},
    ],
)
def test_whoever_has_no_key_of_ours_stays_out(headers: dict[str, str]) -> None:
    """401, and nothing of what he sent is said."""
    told = fault(admission(keys=KEYS), headers)
    assert (told.status, told.code) == (401, "unauthorized")
    assert ACME.lower() not in told.message.lower()
    assert "Authorization: Bearer" in told.message


def test_a_key_whose_secret_is_missing_lets_nobody_in() -> None:
    """Nor does it make the gateway one that wants none."""
    rules = admission(keys={"a": GatewayKey(name="a", key_missing="GATEWAY_KEY")}, listen="0.0.0.0:8004")
    for headers in ({}, {"x-api-key": ""}, {"x-api-key": "None"}, {"x-api-key": "GATEWAY_KEY"}):
        assert fault(rules, headers).status == 401


@pytest.mark.parametrize("name", ["key", "api_key", "API_KEY", "access_token", "token", "x-api-key", "Authorization"])
@pytest.mark.parametrize("path", ["/v1/x", "/"])
def test_a_key_in_the_address_is_refused(name: str, path: str) -> None:
    """Whatever it is, and whether one is needed: it has been written to logs on its way."""
    for keys in ({}, KEYS):
        told = fault(admission(keys=keys), {"x-api-key": ACME}, query=f"after {name}", path=path, method="GET")
        assert (told.status, told.code) == (400, "invalid_request")
        assert "x-api-key" in told.message
    assert admit(admission(), query="after offset live cursor")


@pytest.mark.parametrize("path", ["/", "/health", "/openapi.json", "/assets/page.js"])
def test_what_is_nobodys_is_open(path: str) -> None:
    """To look at; and also to a page elsewhere, for it says nothing."""
    rules = admission(keys=KEYS)
    for headers in ({}, {"x-api-key": "wrong"}, {"Host": "gateway.lan"}, {"Origin": "https://evil.example"}):
        for each in (rules, admission()):
            assert admit(each, headers, path=path, method="GET").name == ""
    assert fault(rules, path=path, method="POST").status == 401
    for near in ("/healthz", "//", "/metrics", "/v1/models", "/assets", "/Health"):
        assert fault(rules, path=near, method="GET").status == 401


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:8004",
        "127.0.0.1",
        "[::1]:8004",
        "192.168.1.7:80",
        "localhost",
        "LocalHost.:1",
        "a.localhost:1",
        "GPU.lan:8004",
    ],
)
def test_without_keys_it_is_asked_by_an_address_or_a_name_of_its_own(host: str) -> None:
    """And by whoever sends no Host at all, which no browser does."""
    rules = admission(hosts=("gpu.LAN",))
    assert admit(rules, {"Host": host}) == Caller()
    assert rules.admit(CIMultiDict(), [], "POST", "/v1/x") == Caller()


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "xlocalhost", "me@127.0.0.1", "127.0.0.1/x", "", "127.0.0.1:x", "[::1", "2130706433", "127.1", "127.0.0.1, evil.example", "evil.example\t"],
)  # fmt: skip
def test_a_name_that_somebody_else_gave_it_is_refused(host: str) -> None:
    """DNS rebinding: to the browser, the page and we are one then."""
    told = fault(admission(), {"Host": host})
    assert told.status == 421
    assert "gateway.hosts" in told.message


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:8004", "http://127.0.0.1:8004"),
        ("localhost", "http://localhost"),
        ("localhost:80", "http://LOCALHOST"),
        ("localhost:443", "https://localhost"),
        ("[::1]:8004", "http://[::1]:8004"),
        ("127.0.0.1:8004", "https://chat.lan"),
    ],
)
def test_a_page_of_ours_or_of_an_origin_that_is_named_may_ask(host: str, origin: str) -> None:
    """Same name and port, or configured."""
    assert admit(admission(allow_origins=("https://Chat.lan",)), {"Host": host, "Origin": origin}) == Caller()


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "", "http://127.0.0.1:8005", "http://localhost:8004", "file://", "https://chat.lan.evil.example", "https://chat.lan:8443", "http://evil.example@127.0.0.1:8004", "ws://127.0.0.1:8004"],
)  # fmt: skip
@pytest.mark.parametrize("more", [{}, {"Content-Type": "text/plain"}, {"x-api-key": "any"}])
def test_a_page_elsewhere_may_not_ask(origin: str, more: dict[str, str]) -> None:
    """Forging a request across sites: a browser sends a plain body without asking us first."""
    told = fault(admission(allow_origins=("https://chat.lan",)), {"Origin": origin, **more})
    assert (told.status, told.code) == (403, "forbidden")
    assert "gateway.allow_origins" in told.message


def test_a_page_elsewhere_may_not_load_anything_either() -> None:
    """Of an image, a script or a frame a browser says no origin, but where the page is; a person may follow a link."""
    loads = {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    for site in ("cross-site", "same-site"):
        told = fault(admission(allow_origins=("https://chat.lan",)), {"Sec-Fetch-Site": site, **loads}, method="GET")
        assert (told.status, told.code) == (403, "forbidden")
        frame = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}
        assert fault(admission(), frame, method="GET").status == 403
        link = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        assert admit(admission(), link, method="GET") == Caller()
        assert admit(admission(allow_origins=("*",)), {"Sec-Fetch-Site": site, **loads}) == Caller()
    for site in ("same-origin", "none"):
        assert admit(admission(), {"Sec-Fetch-Site": site, **loads}) == Caller()


def test_any_origin_where_the_configuration_says_so() -> None:
    """Also a file's page, whose origin is null."""
    assert admit(admission(allow_origins=("*",)), {"Origin": "null"}) == Caller()


def test_beyond_this_machine_it_wants_keys() -> None:
    """Or to be told that it needs none; a key that is missing is one."""
    for listen in ("0.0.0.0:8004", "[::]:8004", "192.168.1.7:8004", "gpu.lan:8004"):
        with pytest.raises(ConfigError, match=r"gateway\.listen.*gateway\.keys.*allow_anonymous"):
            admission(listen=listen)
        admission(listen=listen, keys=KEYS)
        admission(listen=listen, allow_anonymous=True)


@pytest.mark.parametrize(
    ("listen", "is_it"),
    [("127.0.0.1:1", True), ("127.8.9.1:1", True), ("[::1]:1", True), ("LOCALHOST:1", True), (":1", False), ("[::ffff:1.2.3.4]:1", False)],
)  # fmt: skip
def test_what_only_this_machine_reaches(listen: str, is_it: bool) -> None:
    """By address; of names only localhost."""
    assert is_loopback(listen) is is_it


def test_nobody_beside_keys_is_let_in_where_that_is_said() -> None:
    """He has none of what tenants have; and a key that is wrong is a mistake, and not nobody's."""
    rules = admission(keys=KEYS, allow_anonymous=True)
    nobody = admit(rules)
    assert nobody.name == ""
    assert nobody.may_see("invoice-1")
    assert not nobody.may_see("acme:invoice-1")
    with pytest.raises(RefusedError) as caught:
        nobody.request_id_for("acme:invoice-1")
    assert caught.value.fault.status == 403
    with pytest.raises(RefusedError) as caught:
        nobody.tenant_for("acme")
    assert caught.value.fault.status == 403
    assert [nobody.tenant_for(given) for given in (None, "mine", ["acme"])] == [None, "mine", ["acme"]]
    assert fault(rules, {"x-api-key": "wrong"}).status == 401
    assert fault(rules, {"Origin": "https://evil.example"}).status == 403


def test_a_tenant_reaches_its_own_requests_alone() -> None:
    """Their ids begin with its name, whatever its clients choose."""
    acme, ops = Caller(name="a", tenant="acme"), Caller(name="o")
    for key in ("1", "acme:1", "other:1", ":"):
        mine = acme.request_id_for(key)
        assert mine == f"acme:{key}"
        assert acme.may_see(mine)
        assert ops.may_see(mine)
        assert not Caller(name="b", tenant="acm").may_see(mine)
    for other in ("1", "acme", "acme2:1", "ACME:1", "", "x:acme:1"):
        assert not acme.may_see(other)
        assert ops.may_see(other)
    assert ops.request_id_for("k") == "k"
    assert [acme.tenant_for(given) for given in ("other", None)] == ["acme", "acme"]
    assert [ops.tenant_for(given) for given in ("other", None)] == ["other", None]


def test_of_two_keys_alike_the_first_counts() -> None:
    """Always the same."""
    alike = {"b": GatewayKey(name="b", key=ACME, tenant="b"), "a": GatewayKey(name="a", key=ACME, tenant="a")}
    assert admit(admission(keys=alike), {"x-api-key": ACME}).tenant == "b"


def test_a_browser_is_told_of_origins_that_are_named() -> None:
    """And of no other; with keys too."""
    rules = admission(keys=KEYS, allow_origins=("https://chat.lan",))
    told = rules.cors(CIMultiDict({"origin": "https://chat.lan"}))
    assert told["Access-Control-Allow-Origin"] == "https://chat.lan"
    assert "X-Request-ID" in told["Access-Control-Expose-Headers"]
    assert told["Vary"] == "Origin"
    assert "Access-Control-Allow-Credentials" not in told
    assert rules.cors(CIMultiDict({"origin": "https://evil.example"})) == {"Vary": "Origin"}
    assert rules.cors(CIMultiDict()) == {"Vary": "Origin"}
    assert admission(keys=KEYS).cors(CIMultiDict({"origin": "https://chat.lan"})) == {}


def test_a_browser_that_asks_first_is_told_whether_it_may() -> None:
    """What it may send is what it asks for, if these are names."""
    rules = admission(keys=KEYS, allow_origins=("https://chat.lan",))
    asks = CIMultiDict({"Origin": "https://chat.lan", "Access-Control-Request-Method": "POST"})
    told = rules.preflight(asks)
    assert told is not None
    assert "POST" in told["Access-Control-Allow-Methods"]
    assert "Access-Control-Allow-Headers" not in told
    wanted = "authorization, content-type,x-stainless-os"
    assert (rules.preflight(CIMultiDict({**asks, "Access-Control-Request-Headers": wanted})) or {})[
        "Access-Control-Allow-Headers"
    ] == wanted
    for bad in ("a b", "a\r\nb", "a,,b", "é"):
        assert "Access-Control-Allow-Headers" not in (
            rules.preflight(CIMultiDict({**asks, "Access-Control-Request-Headers": bad})) or {}
        )
    assert rules.preflight(CIMultiDict({"Origin": "https://chat.lan"})) is None
    for each in (rules, admission()):
        with pytest.raises(RefusedError) as caught:
            each.preflight(CIMultiDict({"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}))
        assert caught.value.fault.status == 403


@given(
    headers=st.dictionaries(
        st.sampled_from(["Host", "Origin", "Authorization", "x-api-key", "Access-Control-Request-Method"]),
        st.text(st.characters(codec=None), max_size=30) | st.from_regex(r"(https?://)?\[?[0-9a-z:.%@\]]{0,20}"),
    ),
    query=st.lists(st.text(max_size=8)),
    path=st.text(max_size=12),
    has_keys=st.booleans(),
)
def test_whatever_comes_is_let_in_or_refused(
    headers: dict[str, str], query: list[str], path: str, has_keys: bool
) -> None:
    """It never fails, and where keys are wanted nothing but a key opens what is not open."""
    rules = admission(keys=KEYS if has_keys else {}, allow_origins=("https://chat.lan",))
    for method in ("GET", "POST"):
        with suppress(RefusedError):
            caller = rules.admit(CIMultiDict(headers), query, method, path)
            assert not has_keys or is_open(path)
            assert caller.name == ""
    rules.cors(CIMultiDict(headers))
    with suppress(RefusedError):
        rules.preflight(CIMultiDict(headers))
