"""An MCP server that does not behave: `python mcp_stranger.py HOW`; no SDK, speaks 2025-11-25 where it speaks.

It knows one tool, `act`, which appends a line to the file `acted` in its folder, unless HOW says otherwise.
"""

from __future__ import annotations

import json
import os
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


def tools(cursor: str | None) -> dict[str, Any]:
    """What `tools/list` is answered with."""
    match HOW:
        case "many":
            return {"tools": [tool(f"tool{number}") for number in range(10_000)]}
        case "pages":  # which have no end
            return {"tools": [tool(f"tool{cursor}")], "nextCursor": f"{cursor}x"}
        case "twice":
            return {"tools": [tool("act"), tool("act", description="Another.")]}
        case "bomb":
            refs = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 9} for n in range(30)}
            bomb = {"type": "object", "$defs": refs | {"d30": True}, "$ref": "#/$defs/d0"}
            slow = {"type": "object", "properties": {"text": {"type": "string", "pattern": "^(a+)+$"}}}
            return {"tools": [tool("act", outputSchema=slow), {**tool("bomb"), "inputSchema": bomb}]}
        case "no-list":
            return {"tools": "none"}
        case "more" if listings > 1:
            return {"tools": [tool("act"), tool("new")]}
        case _:
            return {"tools": [tool("act")]}


def act(request: dict[str, Any]) -> None:
    """Answer a call, or not."""
    with (FOLDER / "acted").open("a") as file:
        file.write("x\n")
    answer = {"id": request["id"], "result": {"content": [{"type": "text", "text": "done"}]}}
    match HOW:
        case "hang":
            return
        case "crash":
            os._exit(7)
        case "huge":
            answer["result"] = {"content": [{"type": "text", "text": "x" * 10_000_000}]}
        case "long":
            answer["result"] = {"content": [{"type": "text", "text": "y" * 2_000_000}]}
        case "no-result":
            answer["result"] = {"content": "done"}
        case "not-utf-8":
            sys.stdout.buffer.write(b"\xff\xfe noise\n")
            text = json.dumps({"jsonrpc": "2.0", **answer}).replace("done", "d\udcff").encode(errors="surrogateescape")
            sys.stdout.buffer.write(text + b"\n")
            sys.stdout.buffer.flush()
            return
        case "sample":  # asks for a model, and for a person, and says what it was told
            asks = (
                ("sampling/createMessage", {"messages": [], "maxTokens": 9}),
                (
                    "elicitation/create",
                    {"message": "Sure?", "requestedSchema": {"type": "object", "properties": {}}},
                ),
            )
            replies = []
            for number, (method, params) in enumerate(asks):
                say({"id": f"ask{number}", "method": method, "params": params})
                replies.append(json.loads(sys.stdin.readline()))
            answer["result"]["content"][0]["text"] = " ".join(
                "refused" if "error" in each else "given" for each in replies
            )
        case "bomb":
            answer["result"]["structuredContent"] = {"text": "a" * 40 + "!"}
        case "more":
            say({"method": "notifications/tools/list_changed"})
    say(answer)


def main() -> None:
    """Serve until the end of stdin; some do not even then."""
    global listings  # noqa: PLW0603 - it is a small program
    if HOW == "stubborn":  # will not end, nor will its child
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as child:
            (FOLDER / "pids").write_text(f"{os.getpid()} {child.pid}")
            import signal

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
    global listings  # noqa: PLW0603 - see above
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
                act(request)
            case "notifications/cancelled":
                (FOLDER / "cancelled").touch()
            case _ if "id" in request and "method" in request:
                say({"id": request["id"], "error": {"code": -32601, "message": "Method not found"}})


if __name__ == "__main__":
    main()
