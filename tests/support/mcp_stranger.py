"""An MCP server that does not behave: `python mcp_stranger.py HOW`; no SDK, speaks 2025-11-25 where it speaks.

It knows one tool, `act`, which appends a line to the file `acted` in its folder, unless HOW says otherwise.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HOW = sys.argv[1]
FOLDER = Path(os.environ.get("MCP_TEST_FOLDER", "/nowhere"))
listings = 0


def say(message: dict[str, Any]) -> None:
    """Send one message."""
    sys.stdout.buffer.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
    sys.stdout.buffer.flush()


def tool(name: str, **rest: Any) -> dict[str, Any]:
    """A tool as it is listed."""
    return {"name": name, "description": "Act.", "inputSchema": {"type": "object"}, **rest}


def text(words: str, **rest: Any) -> dict[str, Any]:
    """A result of one text."""
    return {"content": [{"type": "text", "text": words}], **rest}


REFS = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 9} for n in range(30)} | {"d30": True}
BOMB = {"type": "object", "$defs": REFS, "$ref": "#/$defs/d0"}
SLOW = {"type": "object", "properties": {"text": {"type": "string", "pattern": "^(a+)+$"}}}
TOOLS: dict[str, Any] = {
    "many": [tool(f"tool{number}") for number in range(10_000)],
    "twice": [tool("act"), tool("act", description="Another.")],
    "bomb": [tool("act", outputSchema=SLOW), {**tool("bomb"), "inputSchema": BOMB}],
    "no-list": "none",
}
RESULTS = {
    "huge": text("x" * 10_000_000),
    "long": text("y" * 2_000_000),
    "no-result": {"content": "done"},
    "bomb": text("", structuredContent={"text": "a" * 40 + "!"}),
}


def tools(cursor: str | None) -> dict[str, Any]:
    """What `tools/list` is answered with."""
    if HOW == "pages":  # which have no end
        return {"tools": [tool(f"tool{cursor}")], "nextCursor": f"{cursor}x"}
    if HOW == "ever-new":
        return {"tools": [tool(f"tool{listings}")]}
    if HOW == "more" and listings > 1:
        return {"tools": [tool("act"), tool("new")]}
    return {"tools": TOOLS.get(HOW, [tool("act")])}


def act(number: Any) -> None:
    """Answer a call, or not."""
    with (FOLDER / "acted").open("a") as file:
        file.write("x\n")
    result = RESULTS.get(HOW, text("done"))
    match HOW:
        case "hang":
            return
        case "stop":
            time.sleep(600)
        case "crash":
            os._exit(7)
        case "sample":
            result = text(" ".join(wishes()))
        case "more":
            say({"method": "notifications/tools/list_changed"})
        case "not-utf-8":
            line = json.dumps({"jsonrpc": "2.0", "id": number, "result": result}).encode()
            sys.stdout.buffer.write(b"\xff\xfe noise\n" + line.replace(b"done", b"d\xff") + b"\n")
            sys.stdout.buffer.flush()
            return
    say({"id": number, "result": result})


def wishes() -> list[str]:
    """Ask for a model, and for a person; what comes of it."""
    form = {"message": "Sure?", "requestedSchema": {"type": "object", "properties": {}}}
    replies = []
    for method, params in (("sampling/createMessage", {"messages": [], "maxTokens": 9}), ("elicitation/create", form)):
        say({"id": method, "method": method, "params": params})
        replies.append(json.loads(sys.stdin.readline()))
    return ["refused" if "error" in each else "given" for each in replies]


def main() -> None:
    """Serve until the end of stdin; some do not even then."""
    if HOW == "stubborn":  # will not end, nor will its child
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as child:
            (FOLDER / "pids").write_text(f"{os.getpid()} {child.pid}")
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            serve()
            time.sleep(600)
    if HOW == "ends":
        sys.exit(4)
    if HOW == "noise":
        sys.stdout.write("Welcome to this server!\n\n[]\n{}\n")
    if HOW == "flood":  # a line without an end
        while True:
            sys.stdout.write("x" * 65_536)
    serve()


def serve() -> None:
    """Answer what comes."""
    global listings  # noqa: PLW0603 - it is a small program
    for line in sys.stdin:
        request = json.loads(line)
        match request.get("method"):
            case "initialize":
                found = {"tools": {"listChanged": True}}
                about = {"name": "stranger", "version": "1"}
                say(
                    {
                        "id": request["id"],
                        "result": {"protocolVersion": "2025-11-25", "capabilities": found, "serverInfo": about},
                    }
                )
            case "tools/list":
                listings += 1
                say({"id": request["id"], "result": tools((request.get("params") or {}).get("cursor"))})
            case "tools/call":
                act(request["id"])
            case "notifications/cancelled":
                (FOLDER / "cancelled").touch()
            case _ if "id" in request and "method" in request:
                say({"id": request["id"], "error": {"code": -32601, "message": "Method not found"}})


if __name__ == "__main__":
    main()
