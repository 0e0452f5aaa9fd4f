"""The tools of MCP servers as tool streams: a client of both sides, which knows no daemon.

`bridge` has the servers of a configuration and one `ToolWorker` for all of them; `server` keeps the connection to one
server, over `child` (a program of ours, stdin and stdout) or `over_http`.  Pure are `offering`, which says under which
name and with which promises a tool is registered, and `answering`, which says what of its result a model is told.

What a server sends is data of a stranger: each message, list, schema and text is bounded here, and no answer of one
makes the bridge call anything.  The SDK (`mcp`, an extra) is imported in this room and nowhere else.

Imports `client`, `config`, `jsonschema`, `protocol` and `logs`.  Another way to reach a server: a transport as in
`child`, and its line in `server`.
"""
