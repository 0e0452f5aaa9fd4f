"""The tables `[agents]` and `[tenants.*]` of the configuration: runs with tools, and who may have which."""

from typing import Annotated

from msgspec import Meta

from llm_routerd.config.table import Table, key

ToolGlob = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.*?-]{1,64}$")]
_GLOBS = "names; `*` stands for any letters, `?` for one"


class AgentsConfig(Table, frozen=True, kw_only=True):
    """Runs with tools: what requests may ask for with `agent`."""

    tools: Annotated[tuple[ToolGlob, ...], key(f"Tools that requests may use: {_GLOBS}.", max_length=256)] = ("*",)
    confirm: Annotated[
        tuple[ToolGlob, ...],
        key(f"Tools whose calls wait for a person, beyond those that demand it: {_GLOBS}.", max_length=256),
    ] = ()
    max_turns: Annotated[
        int, key("Calls to a model of one run, where its request says nothing; it may ask for up to 20.", ge=1, le=20)
    ] = 5
    confirmation_seconds: Annotated[
        float, key("How long a call waits for a person, before its run ends in an error.", gt=0, le=604_800)
    ] = 600.0
    result_bytes: Annotated[
        int, key("Longest result of a tool; what is longer is cut, with a mark.", ge=256, le=4_194_304)
    ] = 65_536


class Tenant(Table, frozen=True, kw_only=True):
    """What one tenant may do; that of the name `default` holds for whoever has none."""

    name: Annotated[str, key("Its name.", is_ours=True)]
    tools: (
        Annotated[
            tuple[ToolGlob, ...],
            key(f"Of the tools of [agents] those that it may use: {_GLOBS}. Absent: all of them.", max_length=256),
        ]
        | None
    ) = None
