"""The native door as an OpenAPI document, made of the schemas of requests and events.

Nothing at run time comes here: the document is a file of the package, as the schemas are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_routerd.gateway.door import JSON, SSE
from llm_routerd.gateway.doors.native.asking import MOST_WAIT_SECONDS
from llm_routerd.protocol.events import FINAL_ID, Cancelled, Failed, Result
from llm_routerd.protocol.keys import LANES
from llm_routerd.protocol.wire import ID_PATTERN, STREAM_ID_PATTERN

if TYPE_CHECKING:
    from collections.abc import Mapping

Schema = dict[str, Any]

_EVENT = "event."
_ENDS = (Result.type, Failed.type, Cancelled.type)
_NOT_ENDED: Schema = {
    "type": "object",
    "description": "What is known of a request that has not ended.",
    "required": ["id", "status", "links"],
    "properties": {
        "id": {"type": "string", "pattern": ID_PATTERN},
        "status": {"enum": ["queued", "running"]},
        "queued": {"$ref": "#/components/schemas/event.queued"},
        "attempt": {"type": "integer", "minimum": 1, "description": "The attempt that is at it."},
        "deployment": {"type": "string", "description": "Whom it asks."},
        "model": {"type": "string", "description": "That deployment's model."},
        "delivery": {"type": "integer", "description": "How often a worker has been handed the request."},
        "links": {"$ref": "#/components/schemas/links"},
    },
}
_LINKS: Schema = {
    "type": "object",
    "description": "Where to go on with a request.",
    "required": ["self", "events", "stream"],
    "properties": {name: {"type": "string"} for name in ("self", "events", "stream")},
}
_FAULT: Schema = {
    "type": "object",
    "required": ["error", "request_id"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "param"],
            "properties": {
                "code": {"type": "string", "description": "For programs."},
                "message": {"type": "string", "description": "For people: what is wrong, and what to do."},
                "param": {"type": ["string", "null"], "description": "Which property is meant."},
            },
        },
        "request_id": {"type": ["string", "null"]},
    },
}
_WORD: Schema = {
    "type": "object",
    "description": "What a person says to a tool call.",
    "required": ["confirm"],
    "additionalProperties": False,
    "properties": {
        "confirm": {"type": "boolean", "description": "Whether the tool may be called."},
        "args_sha256": {
            "type": "string",
            "description": "As in the event `tool_call`; whoever confirms says what was shown to him.",
        },
        "args": {"type": "object", "description": "Other arguments, for which the call may be made."},
        "always": {"type": "boolean", "description": "This tool may be called for the rest of the run."},
        "reason": {"type": "string", "maxLength": 1000, "description": "The model is told that of a denial."},
    },
}


def document(schemas: Mapping[str, Schema]) -> Schema:
    """The document.

    Args:
        schemas: `request` and every `event.*`, as in `schemas/`.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "llm-routerd",
            "version": "1",
            "description": "Requests to language models on a queue, answered local-first.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"bearer": []}, {"key": []}],
        "tags": [
            {"name": "requests", "description": "Submit, follow, end."},
            {"name": "durable streams", "description": "The read side of the Durable Streams protocol, version 1."},
            {"name": "gateway", "description": "How it is."},
        ],
        "paths": _paths(),
        "components": {
            "schemas": _components(schemas),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
            "parameters": {"id": _parameter("id", "path", "The request's id.", pattern=ID_PATTERN)},
            "responses": {"fault": _json("There is none, and why.", "fault")},
        },
    }


def _components(schemas: Mapping[str, Schema]) -> dict[str, Schema]:
    """Every schema by its name, and its definitions beside it, each with that name before its own."""
    found: dict[str, Schema] = {}
    for name, schema in schemas.items():
        if name == "request" or name.startswith(_EVENT):
            moved = _moved({word: value for word, value in schema.items() if word != "$schema"}, name)
            definitions = moved.pop("$defs", {})
            found |= {name: moved} | {f"{name}.{inner}": each for inner, each in definitions.items()}
    kinds = [name.removeprefix(_EVENT) for name in schemas if name.startswith(_EVENT)]
    return found | {
        "event": _event("An event, as it stands in the request's events.", kinds),
        "end": _event("A final event.", _ENDS, id={"const": FINAL_ID}),
        "standing": _NOT_ENDED,
        "links": _LINKS,
        "word": _WORD,
        "fault": _FAULT,
    }


def _moved(value: Any, name: str) -> Any:
    """The same, with references to definitions where those are then."""
    if isinstance(value, dict):
        return {
            word: inner.replace("#/$defs/", f"#/components/schemas/{name}.") if word == "$ref" else _moved(inner, name)
            for word, inner in value.items()
        }
    return [_moved(inner, name) for inner in value] if isinstance(value, list) else value


def _event(description: str, kinds: Any, **properties: Schema) -> Schema:
    return {
        "type": "object",
        "description": description,
        "required": ["id", "type", "data"],
        "properties": {
            "id": {"type": "string", "pattern": STREAM_ID_PATTERN},
            "type": {"type": "string"},
            "data": {"type": "object"},
            **properties,
        },
        "allOf": [
            {
                "if": {"properties": {"type": {"const": kind}}},
                "then": {"properties": {"data": {"$ref": f"#/components/schemas/{_EVENT}{kind}"}}},
            }
            for kind in kinds
        ],
    }


def _parameter(name: str, where: str, description: str, *, required: bool | None = None, **schema: Any) -> Schema:
    return {
        "name": name,
        "in": where,
        "required": where == "path" if required is None else required,
        "description": description,
        "schema": {"type": "string", **schema},
    }


def _or_empty(pattern: str) -> str:
    """An empty text counts as none."""
    return f"^$|{pattern}"


def _json(description: str, name: str, **more: Any) -> Schema:
    return {
        "description": description,
        "content": {JSON: {"schema": {"$ref": f"#/components/schemas/{name}"}}},
        **more,
    }


def _text(description: str) -> Schema:
    return {"description": description, "content": {SSE: {}}}


def _does(name: str, tag: str, summary: str, responses: Schema, **more: Any) -> Schema:
    fault = {"$ref": "#/components/responses/fault"}
    return {"operationId": name, "tags": [tag], "summary": summary, **more, "responses": responses | {"default": fault}}


def _body(name: str) -> Schema:
    return {"required": True, "content": {JSON: {"schema": {"$ref": f"#/components/schemas/{name}"}}}}


def _paths() -> Schema:
    by_id = [{"$ref": "#/components/parameters/id"}]
    return {
        "/v1/requests": {"post": _submit()},
        "/v1/requests/{id}": {"parameters": by_id, "get": _look(), "delete": _cancel()},
        "/v1/requests/{id}/events": {"parameters": by_id, "get": _follow()},
        "/v1/requests/{id}/confirmations/{call_id}": {"parameters": by_id, "post": _consent()},
        "/v1/requests/{id}/stream": {"parameters": by_id, "get": _read(), "head": _head()},
        "/health": {"get": _health()},
        "/openapi.json": {
            "get": _does(
                "describe", "gateway", "This document.",
                {"200": {"description": "It.", "content": {JSON: {"schema": {"type": "object"}}}}}, security=[{}],
            )
        },
    }  # fmt: skip


_PREFER = _parameter("Prefer", "header", f"`wait=30`: wait for the end, so many seconds; at most {MOST_WAIT_SECONDS}.")
_ID_HEADER: Schema = {"X-Request-ID": {"description": "The request's id.", "schema": {"type": "string"}}}
_LOCATION: Schema = {
    **_ID_HEADER,
    "Location": {"description": "Where the request is.", "schema": {"type": "string"}},
}


def _submit() -> Schema:
    return _does(
        "submit", "requests", "Submit a request.",
        {
            "200": _json("It has ended within the time of `Prefer`.", "end", headers=_LOCATION),
            "202": _json("It is queued.", "standing", headers=_LOCATION),
        },
        parameters=[
            _parameter("Idempotency-Key", "header", "The id, unless the body has it.", pattern=_or_empty(ID_PATTERN)),
            _PREFER,
            _parameter("lane", "query", "How urgent it is.", enum=list(LANES), default="normal"),
        ],
        requestBody=_body("request"),
    )  # fmt: skip


def _look() -> Schema:
    return _does(
        "look", "requests", "The end of a request, or what is known of it.",
        {
            "200": _json("Its final event.", "end", headers=_ID_HEADER),
            "202": _json("It has not ended.", "standing", headers=_ID_HEADER),
        },
        parameters=[_PREFER],
    )  # fmt: skip


def _cancel() -> Schema:
    return _does(
        "cancel", "requests", "End a request, and see which end stands: this one, or one that came before.",
        {"200": _json("Its final event.", "end", headers=_ID_HEADER)},
    )  # fmt: skip


def _follow() -> Schema:
    return _does(
        "follow", "requests",
        "The events of a request as they come, and those that have been; after the final one the stream ends.",
        {
            "200": _text("For each event `id` (its ID), `event` (its type) and `data` (its data, as JSON)."),
            "204": {"description": "The final event has been seen: nothing more will come."},
        },
        parameters=[
            _parameter("Last-Event-ID", "header", "The event to go on after.", pattern=_or_empty(STREAM_ID_PATTERN)),
            _parameter("after", "query", "The same, where there is no header.", pattern=_or_empty(STREAM_ID_PATTERN)),
        ],
    )  # fmt: skip


def _consent() -> Schema:
    return _does(
        "consent", "requests", "Say that a tool call may be made, or may not.",
        {
            "202": {
                "description": "It has been passed on; an event `confirmed` or `denied` follows.",
                "content": {JSON: {"schema": {
                    "type": "object", "required": ["id", "call_id", "status", "links"], "properties": {
                        "id": {"type": "string"}, "call_id": {"type": "string"}, "status": {"const": "accepted"},
                        "links": {"$ref": "#/components/schemas/links"},
                    },
                }}},
            },
            "404": _json("Nobody knows this request, or it has made no such call.", "fault"),
            "409": _json("The call waits for no word, has had one, or the request has ended.", "fault"),
            "410": _json("The time for it is over.", "fault"),
            "412": _json("The call has other arguments.", "fault"),
        },
        parameters=[_parameter("call_id", "path", "As in the event `tool_call`.")],
        requestBody=_body("word"),
    )  # fmt: skip


_PLACES: Schema = {
    "Stream-Next-Offset": {"description": "Where to go on.", "schema": {"type": "string"}},
    "Stream-Up-To-Date": {"description": "`true`: there was no more.", "schema": {"type": "string"}},
    "Stream-Closed": {"description": "`true`: there will be no more.", "schema": {"type": "string"}},
    "Stream-Cursor": {"description": "To be sent with the next live read.", "schema": {"type": "string"}},
}


def _read() -> Schema:
    events = {"type": "array", "items": {"$ref": "#/components/schemas/event"}}
    return _does(
        "read", "durable streams", "The events of a request from an offset on.",
        {
            "200": {
                "description": "Events; with `live=sse` they come as they are written.",
                "headers": _PLACES,
                "content": {JSON: {"schema": events}, SSE: {}},
            },
            "204": {"description": "None has come in time (`live=long-poll`), or none will.", "headers": _PLACES},
            "304": {"description": "What the tag of `If-None-Match` stands for is still all there is."},
        },
        parameters=[
            _parameter("offset", "query", "As `Stream-Next-Offset` told; `-1`, the beginning; `now`."),
            _parameter("live", "query", "How to wait for more.", enum=["long-poll", "sse"]),
            _parameter("cursor", "query", "As `Stream-Cursor` told."),
            _parameter("If-None-Match", "header", "As `ETag` told."),
        ],
    )  # fmt: skip


def _head() -> Schema:
    told = {"description": "It is there.", "headers": _PLACES}
    return _does("head", "durable streams", "Where the events of a request end now.", {"200": told})


def _health() -> Schema:
    health: Schema = {
        "type": "object", "required": ["status", "redis"],
        "properties": {"status": {"enum": ["ok", "unavailable"]}, "redis": {"enum": ["ok", "away"]}},
    }  # fmt: skip
    content = {JSON: {"schema": health}}
    return _does(
        "health", "gateway", "Whether requests can be taken.",
        {
            "200": {"description": "They can.", "content": content},
            "503": {"description": "Redis does not answer.", "content": content},
        },
        security=[{}],
    )  # fmt: skip
