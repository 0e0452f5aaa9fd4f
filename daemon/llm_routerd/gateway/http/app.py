"""The paths of the gateway, and what all of them have in common: who may come in, and what a failure looks like."""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from llm_routerd.gateway.door import JSON, Completion, Endpoint, Looked, Lookup, Told
from llm_routerd.gateway.doors import ENDPOINTS, native
from llm_routerd.gateway.doors.native import telling
from llm_routerd.gateway.fault import Fault, RefusedError, refused
from llm_routerd.gateway.http.answering import Answering, fields_of, key_of, wants_async
from llm_routerd.gateway.http.bodies import read_body
from llm_routerd.gateway.http.durable import add_durable
from llm_routerd.gateway.http.native import add_native
from llm_routerd.gateway.http.overviews import Overviews
from llm_routerd.gateway.http.page import OVERVIEW_PATH, add_page
from llm_routerd.gateway.http.responses import RESPONSES, add_responses
from llm_routerd.logs import get_logger
from llm_routerd.protocol.codes import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_routerd.gateway.admission import Admission, Caller
    from llm_routerd.gateway.http.exchange import Exchange

_log = get_logger()

# Official clients ask twice more after a 409, a 429 and a 5xx; of a request that kills workers that would be nine dead
# ones, and of one that found no answer in its time three times that time.
_NEVER_AGAIN = frozenset({"cancelled", ErrorCode.BUDGET_EXCEEDED, ErrorCode.DEADLINE_EXCEEDED, ErrorCode.POISONED})

CALLER: web.RequestKey[Caller] = web.RequestKey("caller", object)  # type: ignore[arg-type]


def make_application(exchange: Exchange, admission: Callable[[], Admission]) -> web.Application:
    """The application of one gateway.

    Args:
        exchange: its way to the queue.
        admission: who may come in, as it is in force when a request comes.
    """

    async def tell_browser(request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(admission().cors(request.headers))

    app = web.Application(middlewares=[_border(admission)])
    app.on_response_prepare.append(_guard)
    app.on_response_prepare.append(tell_browser)
    overviews = Overviews(exchange.client)
    add_page(app.router, lambda request: overviews.see(exchange.config, request[CALLER]))
    for endpoint in ENDPOINTS:
        match endpoint:
            case Completion():
                app.router.add_post(endpoint.path, _completing(exchange, endpoint))
                if endpoint.path == RESPONSES:
                    add_responses(app.router, exchange, _caller_of, endpoint)
            case Lookup():
                app.router.add_route(endpoint.method, endpoint.path, _looking(exchange, endpoint))
    add_native(app.router, exchange, _caller_of, lambda request: read_object(exchange, request))
    add_durable(app.router, exchange, _caller_of)
    return app


async def _guard(_request: web.Request, response: web.StreamResponse) -> None:
    """No browser takes an answer for what it does not say it is, nor shows it within a page of another origin."""
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")


def _caller_of(request: web.Request) -> Caller:
    return request[CALLER]


def _completing(exchange: Exchange, endpoint: Completion) -> Any:
    async def complete(request: web.Request) -> web.StreamResponse:
        ask = endpoint.read(await read_object(exchange, request), exchange.catalogue)
        if isinstance(ask, Looked):
            return _looked_up(ask)
        key = key_of(request)
        prepared = exchange.prepare(fields_of(ask), request[CALLER], key=key)
        is_async = wants_async(request)
        if is_async:
            await exchange.submit(prepared)
            return accepted(prepared.request_id)
        if ask.receipt is not None and not ask.streams:
            await exchange.submit(prepared)
            body = ask.receipt(Told(prepared.request_id, int(time.time())))
            return web.Response(body=body, content_type=JSON, headers={"X-Request-ID": prepared.request_id})
        is_kept = key is not None or ask.receipt is not None
        return await Answering(exchange, endpoint, request, ask, prepared, is_kept=is_kept).run()

    return complete


def accepted(request_id: str) -> web.Response:
    """The request is on its way, and its client will come back for it."""
    location = telling.links(request_id)["self"]
    headers = {"Location": location, "X-Request-ID": request_id, "Preference-Applied": "respond-async"}
    return web.Response(status=202, body=telling.standing(request_id, None), content_type=JSON, headers=headers)


def _looking(exchange: Exchange, endpoint: Lookup) -> Any:
    async def look(request: web.Request) -> web.StreamResponse:
        if request.method == "POST":
            body = await read_object(exchange, request)
        else:
            body = {**request.query, **request.match_info}
        return _looked_up(endpoint.look(body, exchange.catalogue))

    return look


def _looked_up(found: Looked) -> web.Response:
    return web.Response(body=found.body, content_type=found.media_type, headers=found.headers)


async def read_object(exchange: Exchange, request: web.Request) -> dict[str, Any]:
    """The JSON object in a body.

    Raises:
        RefusedError: it is too long, or none.
    """
    data = await read_body(request, exchange.config.daemon.max_request_bytes)
    try:
        body = msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise refused("body", "expected a JSON object, and this is no JSON") from None
    if not isinstance(body, dict):
        raise refused("body", "expected a JSON object")
    return body


def fault_response(endpoint: Endpoint | None, fault: Fault) -> web.Response:
    """A failure, in the shape of its door."""
    tell = native.fault if endpoint is None else endpoint.fault
    headers = {}
    if fault.request_id:
        own = endpoint.id_header if endpoint is not None else ""
        headers = {name: fault.request_id for name in ("X-Request-ID", own) if name}
    if fault.retry_after_seconds is not None:
        headers["Retry-After"] = str(fault.retry_after_seconds)
    if fault.is_lasting or fault.code in _NEVER_AGAIN:
        headers["X-Should-Retry"] = "false"
    if fault.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="llm-routerd"'
    return web.Response(status=fault.status, body=tell(fault), content_type=JSON, headers=headers)


def endpoint_at(path: str) -> Endpoint | None:
    """Whose failures a path has, also where nothing is there: that of the endpoint which it is nearest to."""
    for endpoint in ENDPOINTS:
        if endpoint.path == path:
            return endpoint
    best, most = None, 1
    for endpoint in ENDPOINTS:
        alike = len(_common(endpoint.path, path))
        if alike > most:
            best, most = endpoint, alike
    return best


def door_at(path: str) -> str:
    """The name of the door that a path of the table belongs to; "": none."""
    if path == OVERVIEW_PATH:
        return "page"
    endpoint = endpoint_at(path)
    return "" if endpoint is None else endpoint.door


def _common(one: str, other: str) -> list[str]:
    found = []
    for a, b in zip(one.split("/"), other.split("/"), strict=False):
        if a != b:
            break
        found.append(a)
    return found


def _border(admission: Callable[[], Admission]) -> Any:
    @web.middleware
    async def border(request: web.Request, handler: Any) -> web.StreamResponse:
        rules = admission()
        try:
            allowed = rules.preflight(request.headers) if request.method == "OPTIONS" else None
            if allowed is not None:
                return web.Response(status=204, headers=allowed)
            request[CALLER] = rules.admit(request.headers, request.query, request.method, request.path)
            response: web.StreamResponse = await handler(request)
        except RefusedError as error:
            return fault_response(endpoint_at(request.path), error.fault)
        except web.HTTPException as error:
            told = fault_response(endpoint_at(request.path), _of_http(error))
            if isinstance(error, web.HTTPMethodNotAllowed):
                told.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
            return told
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception:  # noqa: BLE001 - the outer border of one request
            _log.exception("http_request_failed", path=path_of(request))
            fault = Fault(status=500, code="internal", message="a fault of llm-routerd; its log says more")
            return fault_response(endpoint_at(request.path), fault)
        return response

    return border


def path_of(request: web.Request) -> str:
    """The path as its route has it: ids and whatever else a client wrote are not in it."""
    resource = request.match_info.route.resource
    return "" if resource is None else resource.canonical


def _of_http(error: web.HTTPException) -> Fault:
    match error.status:
        case HTTPStatus.NOT_FOUND:
            told = "there is nothing at this path; OpenAI's base URL ends in /v1, Anthropic's and Ollama's do not"
            return Fault(status=404, code="not_found", message=told)
        case HTTPStatus.METHOD_NOT_ALLOWED:
            return Fault(status=405, code="method_not_allowed", message="this path does not take this method")
        case status:
            return Fault(status=status, code="invalid_request", message=error.reason or "the request is malformed")
