"""Runs with tools, as a pure machine: which tools there are, what to do next, what a model is told.

`registration` reads a tool, `offering` says which of them a request may use, `run` is the machine, `calls` turns a
model's answer into what is dispatched, `words` what tools and people say into events, `conversation` what the next
turn is shown.

Nothing is kept but in a request's events: `AgentRun` replays them, and stands where the worker stood that wrote them.
Imports `protocol`, `jsonschema`, `judging.calls` and the values of `config`; no event loop, no network, no clock,
no log.
"""
