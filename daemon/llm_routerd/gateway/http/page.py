"""The page at `/`, what it is made of, and what it looks at."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web

from llm_routerd.errors import BrokerError
from llm_routerd.gateway.door import JSON
from llm_routerd.gateway.http.exchange import unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llm_routerd.gateway.overview import Overview

_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_ASSETS: Final = ("page.css", "page.js", "events.js", "shown.js", "transcript.js", "icon.svg")
# All of it is given without a key, for it holds nothing of anybody.
PATHS: Final = {"index.html": "/"} | {name: f"/assets/{name}" for name in _ASSETS}
OVERVIEW_PATH: Final = "/v1/overview"

# Nothing is loaded from elsewhere, nothing in a prompt or an answer can run, and no other page can frame this one.
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_page(router: web.UrlDispatcher, see: Callable[[web.Request], Awaitable[Overview]]) -> None:
    """Add the page's paths.

    Args:
        router: of the application.
        see: what the caller of a request may see.  Raises `BrokerError`.
    """
    folder = resources.files("llm_routerd.gateway").joinpath("page")
    for name, path in PATHS.items():
        router.add_get(path, _serving(folder.joinpath(name).read_bytes(), _TYPES[name.rpartition(".")[2]]))

    async def tell(request: web.Request) -> web.Response:
        try:
            seen = await see(request)
        except BrokerError as error:
            raise unavailable(error) from error
        return web.Response(body=msgspec.json.encode(seen), content_type=JSON, headers={"Cache-Control": "no-store"})

    router.add_get(OVERVIEW_PATH, tell)


def _serving(body: bytes, kind: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": tag, "Content-Type": kind}

    async def serve(request: web.Request) -> web.Response:
        if tag in request.headers.get("If-None-Match", ""):
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, headers=headers)

    return serve
