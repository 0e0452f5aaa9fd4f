"""Every row of the table of providers is whole, and every backend has its row and its module."""

from __future__ import annotations

import inspect
import pkgutil
import re

import pytest

from llm_routerd import backends
from llm_routerd.backends.factory import room_of
from llm_routerd.backends.wire.transport import Transport
from llm_routerd.config.addresses import check_api_base
from llm_routerd.config.providers import BACKENDS, PROVIDERS, provider_of
from llm_routerd.config.tree import Deployment
from llm_routerd.protocol.backend import Backend
from tests.support.calling import deployment_of


@pytest.mark.parametrize("name", PROVIDERS)
def test_row_is_whole(name: str) -> None:
    """Somebody calls it; a key goes to an address; what holds for a backend stands in that backend's row."""
    row = PROVIDERS[name]
    own = PROVIDERS[row.backend]
    assert own.backend == row.backend
    if row.home is not None:
        check_api_base(row.home)
        assert not row.home.endswith("/")
    if row.key_variable is not None:
        assert row.home is not None
        assert re.fullmatch("[A-Z_]+_API_KEY", row.key_variable)
    if row.address_variable is not None:
        assert row.home is not None
    if row is not own:
        assert (row.loads, row.lends_protocol) == (None, False)


@pytest.mark.parametrize("name", BACKENDS)
async def test_backend_has_a_module_that_makes_it(name: str) -> None:
    """By the row's name; what it makes has all that `protocol.Backend` promises."""
    transport = Transport()
    try:
        made = room_of(name).make_backends({"x": deployment_of(name, "http://127.0.0.1:9")}, transport)
        assert made.keys() == {"x"}
        promised = {method for method, _ in inspect.getmembers(Backend, inspect.isfunction) if method[0] != "_"}
        assert promised == {"stream", "probe", "window", "loaded_window", "resident", "warm"}
        assert all(callable(getattr(made["x"], method)) for method in promised)
    finally:
        await transport.aclose()


def test_no_backend_is_without_a_row() -> None:
    """Else nobody could ever call it."""
    modules = [each.name for each in pkgutil.iter_modules(backends.__path__)]
    assert {name for name in modules if hasattr(room_of(name), "make_backends")} == set(BACKENDS)


@pytest.mark.parametrize(
    ("model", "backend", "called_by"),
    [
        ("ollama/m", "auto", "ollama"),
        ("ollama_chat/m", "auto", "ollama"),
        ("hosted_vllm/m", "auto", "openai"),
        ("anthropic/m", "auto", "anthropic"),
        ("groq/m", "auto", "litellm"),
        ("groq/m", "openai", "openai"),
        ("anthropic/m", "litellm", "litellm"),
    ],
)
def test_deployment_is_called_as_its_row_says_or_itself(model: str, backend: str, called_by: str) -> None:
    """Traits go with who calls it, and not with the provider's name."""
    deployment = Deployment(name="x", model=model, backend=backend)
    assert deployment.backend_kind == called_by
    assert deployment.protocol is PROVIDERS[called_by]
    assert provider_of(model) is PROVIDERS.get(deployment.provider, PROVIDERS["litellm"])
