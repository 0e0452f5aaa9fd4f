"""One request under way: its turns, each turn's attempt, the clock that bounds it, and the resources that all share.

Knows neither Redis nor a backend's code, only Protocols: `EventSink` beside `Attempt`, `protocol.backend.Backend`.
"""
