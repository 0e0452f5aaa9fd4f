"""The list of models, as OpenAI's clients and Anthropic's read it, and errors in OpenAI's shape."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from llm_routerd.gateway.doors.openai.fault import fault_body
from llm_routerd.gateway.doors.openai.models import look, look_at
from llm_routerd.gateway.fault import Fault, RefusedError
from tests.gateway.openai.asking import CATALOGUE


def test_list_has_chains_deployments_and_aliases() -> None:
    """Each as OpenAI's `Model`, and as Anthropic's `ModelInfo`."""
    found = json.loads(look({}, CATALOGUE).body)
    names = [each["id"] for each in found["data"]]
    assert {"default", "gpt-5", "local"} <= set(names)
    assert (found["object"], found["has_more"]) == ("list", False)
    assert (found["first_id"], found["last_id"]) == (names[0], names[-1])
    for each in found["data"]:
        assert each["display_name"] == each["id"]
        assert (each["object"], each["type"]) == ("model", "model")
        assert each["created_at"].endswith("Z")


def test_one_of_them() -> None:
    """The same object that stands in the list."""
    every = json.loads(look({}, CATALOGUE).body)["data"]
    for each in every:
        assert json.loads(look_at({"model": each["id"]}, CATALOGUE).body) == each


def test_unknown_one_is_not_found() -> None:
    """The nearest name is told."""
    with pytest.raises(RefusedError, match="did you mean 'default'"):
        look_at({"model": "defautl"}, CATALOGUE)
    with pytest.raises(RefusedError):
        look_at({}, CATALOGUE)


def test_official_type_takes_it() -> None:
    """OpenAI's own client validates it, in strict mode."""
    types = pytest.importorskip("openai.types")
    types.Model.model_validate_json(look_at({"model": "default"}, CATALOGUE).body, strict=True)


@pytest.mark.parametrize(
    ("status", "code", "kind", "told"),
    [
        (400, "invalid_request", "invalid_request_error", "invalid_request"),
        (400, "context_length_exceeded", "invalid_request_error", "context_length_exceeded"),
        (400, "unsupported", "invalid_request_error", "unsupported_parameter"),
        (401, "unauthorized", "authentication_error", "invalid_api_key"),
        (403, "forbidden", "permission_error", "forbidden"),
        (404, "unknown_model", "invalid_request_error", "model_not_found"),
        (409, "cancelled", "invalid_request_error", "cancelled"),
        (413, "request_too_large", "invalid_request_error", "request_too_large"),
        (429, "too_many_requests", "rate_limit_error", "rate_limit_exceeded"),
        (429, "budget_exceeded", "rate_limit_error", "budget_exceeded"),
        (500, "internal", "server_error", "internal"),
        (503, "chain_exhausted", "server_error", "chain_exhausted"),
        (504, "deadline_exceeded", "server_error", "deadline_exceeded"),
    ],
)
def test_error(status: int, code: str, kind: str, told: str) -> None:
    """Its type follows from the status, and its code is the one that clients look for."""
    fault = Fault(status=status, code=code, message="no", param="model", request_id="r1")
    wanted: dict[str, Any] = {"message": "no", "type": kind, "param": "model", "code": told, "request_id": "r1"}
    assert json.loads(fault_body(fault)) == {"error": wanted}


def test_error_without_a_request() -> None:
    """No id is made up, and where no property is meant that is null."""
    error = json.loads(fault_body(Fault(status=401, code="unauthorized", message="no")))["error"]
    assert error == {"message": "no", "type": "authentication_error", "param": None, "code": "invalid_api_key"}


def test_a_name_of_millions_of_characters_is_refused_at_once() -> None:
    """The nearest one is looked for by what it begins with."""
    began = time.process_time()
    with pytest.raises(RefusedError, match="no chain, deployment or alias"):
        CATALOGUE.find("x" * 10_000_000)
    assert time.process_time() - began < 1
