"""The OpenAPI document: sound, and of what is served."""

from __future__ import annotations

import copy
from importlib.resources import files
from typing import Any

import jsonschema_rs
import orjson
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from llm_routerd.gateway.door import SSE
from llm_routerd.gateway.event_json import event_json
from llm_routerd.protocol import examples
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.reading import read_event
from tests.gateway.application import Site, open_site

DOCUMENT: dict[str, Any] = orjson.loads(files("llm_routerd").joinpath("schemas", "openapi.json").read_bytes())


def validator(name: str) -> jsonschema_rs.Draft202012Validator:
    """Of one of its schemas."""
    return jsonschema_rs.Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}, offline=True
    )


def test_document_is_sound() -> None:
    """A public validator takes it, and does not take whatever comes."""
    validate(DOCUMENT, cls=OpenAPIV31SpecValidator)
    unsound = copy.deepcopy(DOCUMENT)
    del unsound["paths"]["/v1/requests/{id}"]["parameters"]
    assert list(OpenAPIV31SpecValidator(unsound).iter_errors())


@pytest.mark.parametrize("request_body", examples.REQUESTS)
def test_requests_are_those_of_the_protocol(request_body: dict[str, Any]) -> None:
    """The examples pass, and nothing that the request schema does not have."""
    assert validator("request").is_valid(request_body)
    assert not validator("request").is_valid({**request_body, "promt": "x"})


@pytest.mark.parametrize(("kind", "data"), [(kind, each) for kind, shown in examples.EVENTS.items() for each in shown])
def test_events_are_told_as_they_are_described(kind: str, data: dict[str, Any]) -> None:
    """With what each type has; a final event is one, and no other."""
    is_final = kind in {"result", "error", "cancelled"}
    told = orjson.loads(event_json(read_event(FINAL_ID if is_final else "1-1", kind, orjson.dumps(data))))
    assert validator("event").is_valid(told)
    assert validator("end").is_valid(told) == is_final
    if validator(f"event.{kind}").is_valid({}):
        return
    assert not validator("event").is_valid({**told, "data": {}})


async def test_every_path_that_is_served_is_described(valkey_url: str) -> None:
    """With its methods, and no other."""
    async with open_site(valkey_url) as site:
        served = {
            (path, method)
            for path, method in site.routes
            if path in DOCUMENT["paths"] or path.startswith("/v1/requests")
            if method != "head" or path.endswith("/stream")
        }
        described = {
            (path, method)
            for path, each in DOCUMENT["paths"].items()
            for method in each
            if method in {"get", "post", "delete", "head"}
        }
        assert served == described
        status, headers, told = await site.get("/openapi.json")
    assert (status, headers["Content-Type"].partition(";")[0], told) == (200, "application/json", DOCUMENT)


async def test_what_is_told_is_as_described(valkey_url: str) -> None:
    """What is known, an end, a failure, a word passed on; each with a status that the document has."""
    async with open_site(valkey_url) as site:
        await _check(site, "/v1/requests/{id}", "/v1/requests/a")
        await site.begin("a", "text")
        await _check(site, "/v1/requests/{id}", "/v1/requests/a")
        await _check(site, "/v1/requests/{id}/stream", "/v1/requests/a/stream")
        await site.end("a")
        await _check(site, "/v1/requests/{id}", "/v1/requests/a")
        await _check(site, "/v1/requests/{id}/stream", "/v1/requests/a/stream?offset=x")
        await _check(site, "/health", "/health")


async def _check(site: Site, path: str, asked: str) -> None:
    status, _, told = await site.get(asked)
    responses = DOCUMENT["paths"][path]["get"]["responses"]
    response = responses.get(str(status), responses["default"])
    if "$ref" in response:
        assert status >= 400
        response = DOCUMENT["components"]["responses"]["fault"]
    (schema,) = [each["schema"] for kind, each in response["content"].items() if kind != SSE]
    jsonschema_rs.validate({**schema, "components": DOCUMENT["components"]}, told)
