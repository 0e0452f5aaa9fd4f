"""What Ollama's clients look up: compared with what one said, and read by its client's own types where it is there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from llm_routerd.gateway.doors.ollama import ENDPOINTS
from llm_routerd.gateway.doors.ollama.listing import running, show, tags, version
from tests.gateway.asking import CATALOGUE, refusal
from tests.gateway.ollama.recordings import answered

if TYPE_CHECKING:
    from collections.abc import Callable


def looked(look: Callable[..., Any], **body: Any) -> dict[str, Any]:
    """What is told."""
    told: dict[str, Any] = json.loads(look(body, CATALOGUE).body)
    return told


def test_every_name_is_listed() -> None:
    """Chains, deployments and aliases, with whom they stand for."""
    models = looked(tags)["models"]
    assert [(each["name"], each["details"]["family"], each["details"]["families"]) for each in models] == [
        ("default", "chain", ["ollama/gemma3:270m", "anthropic/claude-haiku-4-5"]),
        ("gemma", "deployment", ["ollama/gemma3:270m"]),
        ("haiku", "deployment", ["anthropic/claude-haiku-4-5"]),
        ("claude-sonnet-4-6", "alias", ["ollama/gemma3:270m", "anthropic/claude-haiku-4-5"]),
    ]
    assert len({each["digest"] for each in models}) == len(models)
    real = answered("api-tags")[0]["models"][0]
    assert models[0].keys() == real.keys()
    assert models[0]["details"].keys() == real["details"].keys() - {"context_length", "embedding_length"}


def test_one_model_is_shown() -> None:
    """By any of its names; one that is not there is not found."""
    told = looked(show, model="default:latest", verbose=True)
    assert (told["details"]["family"], told["model_info"]["general.basename"]) == ("chain", "default")
    assert told == looked(show, name="default")
    assert refusal(show, {"model": "nope"}).status == 404
    assert refusal(show, {}).param == "model"
    assert refusal(show, {"model": "gemma", "nmae": 1}).param == "nmae"


def test_what_is_in_memory_is_not_known() -> None:
    """Nothing is made up."""
    assert looked(running) == {"models": []}


def test_the_version_is_that_of_the_protocol() -> None:
    """Clients compare it, in three numbers."""
    assert len([int(part) for part in looked(version)["version"].split(".")]) == 3


def test_the_clients_own_types_read_it() -> None:
    """Lists and all."""
    ollama = pytest.importorskip("ollama")
    assert [each.model for each in ollama.ListResponse.model_validate(looked(tags)).models][:1] == ["default"]
    assert ollama.ShowResponse.model_validate(looked(show, model="gemma")).capabilities == ["completion", "tools"]
    assert not ollama.ProcessResponse.model_validate(looked(running)).models


def test_the_endpoints() -> None:
    """Where they are."""
    assert [each.path for each in ENDPOINTS] == [
        *("/api/chat", "/api/generate", "/api/tags", "/api/ps", "/api/version", "/api/show")
    ]
