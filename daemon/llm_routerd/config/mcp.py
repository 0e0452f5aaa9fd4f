"""The tables `[mcp.*]` of the configuration: MCP servers whose tools `llm-routerd mcp-bridge` serves."""

from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta, field

from llm_routerd.config.table import Table, key

ServerName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,30}$")]
McpGlob = Annotated[str, Meta(pattern=r"^[^\x00-\x20\[\]\x7f]{1,128}$")]
_GLOBS = "names as the server has them; `*` stands for any letters, `?` for one"


class McpServer(Table, frozen=True, kw_only=True):
    """An MCP server: a program that is started, or one that is reached over HTTP.

    `secret_missing` names what a reference in its table has named in vain; such a server is not served.
    """

    name: Annotated[str, key("Its name.", is_ours=True)]
    secret_missing: Annotated[str, key("Which secret.", is_ours=True)] | None = None
    command: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=4096)], ...],
        key(
            "The program and its arguments, which is spoken to over its stdin and stdout. Others see it: no secret "
            "has a place in it.",
            max_length=256,
            is_told=True,
        ),
    ] = ()
    env: Annotated[
        Mapping[
            Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")], Annotated[str, Meta(max_length=65_536)]
        ],
        key("Its environment, beside HOME, PATH and the like; it gets nothing else of ours.", is_secret=True),
    ] = field(default_factory=dict)
    cwd: (
        Annotated[str, key("The folder that it is started in.", min_length=1, max_length=4096, is_told=True)] | None
    ) = None
    url: (
        Annotated[
            str,
            key(
                "Address of its endpoint (streamable HTTP), like https://mcp.lan/mcp; may hold a secret.",
                pattern=r"^https?://[^/\s]+",
                expected="an address like https://mcp.lan/mcp",
                is_secret=True,
            ),
        ]
        | None
    ) = None
    headers: Annotated[
        Mapping[
            Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")],
            Annotated[str, Meta(pattern=r"^[\x20-\x7e]{0,8192}$")],
        ],
        key('Sent with each request to it: { Authorization = "Bearer ${credential:…}" }.', is_secret=True),
    ] = field(default_factory=dict)
    allow: Annotated[tuple[McpGlob, ...], key(f"Which of its tools are served: {_GLOBS}.", max_length=256)] = ("*",)
    confirm: (
        Annotated[
            tuple[McpGlob, ...],
            key(
                f"Whose calls wait for a person: {_GLOBS}. Absent: every tool that the server does not call read-only; "
                "[]: none.",
                max_length=256,
            ),
        ]
        | None
    ) = None
    prefix: (
        Annotated[
            str,
            key(
                "What the registered names of its tools begin with. Absent: its name, and a dot.",
                pattern=r"^([A-Za-z0-9_][A-Za-z0-9_.-]{0,31})?$",
                expected="letters, digits and . _ -, at most 32, the first none of . -",
                is_told=True,
            ),
        ]
        | None
    ) = None
    timeout_seconds: Annotated[float, key("How long a call of a tool may take.", ge=0.001, le=86_400)] = 30.0

    @property
    def name_prefix(self) -> str:
        """What the registered names of its tools begin with."""
        return f"{self.name}." if self.prefix is None else self.prefix
