"""Which tools a request gets, which of them ask, and under which names models know them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_routerd.agents.offering import MOST_TOOLS, NotOffered, offer, refusal_of, tenant_of, told_names
from llm_routerd.agents.registration import Tool, Unsound
from llm_routerd.config.agents import AgentsConfig, Tenant
from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.protocol.request import AgentSpec
from tests.agents.scene import offer_of, tool, tools_of

REGISTERED: dict[str, Tool | Unsound] = {
    **tools_of(tool("add"), tool("lights.dim"), tool("lights.switch", confirm=True), tool("Lights.up")),
    "bad": Unsound("it is no JSON"),
    "lights.bad": Unsound("it is no JSON"),
}
EVERY = ("*",)


def spec(*tools: str, confirm: tuple[str, ...] = ()) -> AgentSpec:
    """What a request asks for."""
    return AgentSpec(tools=tools, confirm=confirm)


@pytest.mark.parametrize(
    ("asked", "operator", "tenant", "offered"),
    [
        (("add",), EVERY, None, ["add"]),
        (("*",), EVERY, None, ["Lights.up", "add", "lights.dim", "lights.switch"]),
        (("lights.*",), EVERY, None, ["lights.dim", "lights.switch"]),
        (("lights.d?m", "add", "add"), EVERY, None, ["add", "lights.dim"]),
        (("*",), ("lights.*",), None, ["lights.dim", "lights.switch"]),
        (("*",), ("lights.*",), ("*m", "add"), ["lights.dim"]),
        (("*",), EVERY, (), []),
        (("*",), (), ("*",), []),
        (("gone", "add"), EVERY, None, ["add"]),
        (("bad",), EVERY, None, []),
    ],
)
def test_request_is_offered_what_it_asks_for_as_far_as_it_may(
    asked: tuple[str, ...], operator: tuple[str, ...], tenant: tuple[str, ...] | None, offered: list[str]
) -> None:
    """By the operator's `[agents]`, and by what he lets its tenant have."""
    agents = AgentsConfig(tools=operator)
    found = offer(spec(*asked), REGISTERED, agents, None if tenant is None else Tenant(name="t", tools=tenant))
    assert [each.name for each in found.tools.values()] == offered


@pytest.mark.parametrize(
    ("asked", "operator", "tenant", "code", "message"),
    [
        (("add", "lights.*"), EVERY, None, None, ""),
        (("gone",), EVERY, None, ErrorCode.UNKNOWN_TOOL, "no tool `gone` is registered"),
        (
            ("ligths.dim",),
            EVERY,
            None,
            ErrorCode.UNKNOWN_TOOL,
            "no tool `ligths.dim` is registered; did you mean `lights.dim`?",
        ),
        (("ligths.dim",), ("add",), None, ErrorCode.UNKNOWN_TOOL, "no tool `ligths.dim` is registered"),
        (("add", "g*"), EVERY, None, ErrorCode.UNKNOWN_TOOL, "no tool is registered that matches `g*`"),
        (("bad",), EVERY, None, ErrorCode.UNKNOWN_TOOL, "it is no JSON"),
        (("b*",), EVERY, None, ErrorCode.UNKNOWN_TOOL, "no tool is registered that matches `b*`"),
        (("add",), ("lights.*",), None, ErrorCode.TOOL_NOT_ALLOWED, "`add`"),
        (("add", "lights.dim"), EVERY, ("add",), ErrorCode.TOOL_NOT_ALLOWED, "`lights.dim`"),
        (("lights.*",), EVERY, ("add",), ErrorCode.TOOL_NOT_ALLOWED, "`lights.*`"),
        (("*",), EVERY, ("add",), None, ""),  # of what a glob matches, what is allowed
        (("*",), EVERY, (), ErrorCode.TOOL_NOT_ALLOWED, "`*`"),
    ],
)
def test_run_may_not_begin_without_what_it_names(
    asked: tuple[str, ...],
    operator: tuple[str, ...],
    tenant: tuple[str, ...] | None,
    code: ErrorCode | None,
    message: str,
) -> None:
    """It is told which of the names is why."""
    agents = AgentsConfig(tools=operator)
    found = refusal_of(spec(*asked), REGISTERED, agents, None if tenant is None else Tenant(name="t", tools=tenant))
    if code is None:
        assert found is None
    else:
        assert isinstance(found, NotOffered)
        assert found.code is code
        assert message in found.message


def test_no_more_tools_are_offered_than_models_take() -> None:
    """To a run that has begun as many as they do; one that has not does not begin."""
    registered = tools_of(*(tool(f"t{number:03}") for number in range(MOST_TOOLS + 1)))
    agents = AgentsConfig()
    assert len(offer(spec("*"), registered, agents, None).tools) == MOST_TOOLS
    found = refusal_of(spec("*"), registered, agents, None)
    assert found is not None
    assert (found.code, "129 tools" in found.message) == (ErrorCode.INVALID_REQUEST, True)
    del registered["t000"]
    assert refusal_of(spec("*"), registered, agents, None) is None


@pytest.mark.parametrize(
    ("operator", "asked", "asks"),
    [
        ((), (), {"lights.switch"}),
        (("lights.*",), (), {"lights.switch", "lights.dim"}),
        ((), ("a*",), {"lights.switch", "add"}),
        (("add",), ("Lights.up",), {"lights.switch", "add", "Lights.up"}),
    ],
)
def test_tool_asks_where_anybody_wants_it_to(operator: tuple[str, ...], asked: tuple[str, ...], asks: set[str]) -> None:
    """The tool itself, the operator, the request: each can demand it, and none can take it back."""
    found = offer(spec("*", confirm=asked), REGISTERED, AgentsConfig(confirm=operator), None)
    assert found.asks == asks


@pytest.mark.parametrize(
    ("tenant_id", "name"), [("a", "a"), ("b", "default"), (None, "default"), ("", "default"), ("default", "default")]
)
def test_tenant_without_a_table_has_that_of_default(tenant_id: str | None, name: str) -> None:
    """And without one of that name there is none."""
    tenants = {each: Tenant(name=each) for each in ("a", "default")}
    found = tenant_of(tenants, tenant_id)
    assert found is not None
    assert found.name == name
    assert tenant_of({}, tenant_id) is None


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["add", "lights.switch"], ["add", "lights_switch"]),
        (["a.b", "a_b"], ["a_b", "a_b_2"]),
        (["a.b", "a_b", "a_b_2"], ["a_b", "a_b_2", "a_b_2_2"]),
        (["a-b"], ["a-b"]),
        (["x" * 63 + ".", "x" * 63 + "_"], ["x" * 63 + "_", "x" * 60 + "_2"]),
    ],
)
def test_models_know_tools_by_names_that_providers_take(names: list[str], told: list[str]) -> None:
    """Two that would be the same get a number."""
    assert told_names(names) == told


@given(st.lists(st.from_regex(r"[ab._-]{1,5}|[a._]{62,64}", fullmatch=True), unique=True, max_size=MOST_TOOLS))
def test_names_that_models_know_are_each_another(names: list[str]) -> None:
    """And none is longer than providers take."""
    told = told_names(names)
    assert len(set(told)) == len(names)
    assert all(re.fullmatch("[A-Za-z0-9_-]{1,64}", name) for name in told)


def test_models_are_told_name_description_and_parameters() -> None:
    """The schema is one of an object, also where its author has not said so."""
    found = offer_of(tool("a.b", parameters={"properties": {"x": {"type": "integer"}}}), tool("c"))
    assert found.as_functions() == (
        {
            "type": "function",
            "function": {
                "name": "a_b",
                "description": "Does it.",
                "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
            },
        },
        {"type": "function", "function": {"name": "c", "description": "Does it.", "parameters": {"type": "object"}}},
    )
    assert set(found.parameters) == {"a_b", "c"}
