"""One request asking its chain: decisions carried out, calls made and bounded, what they cost noted.

`run` loops over the decisions of `routing.chain`; `caller` gives a deployment its turn: a place among its calls, a
loaded model, and an `attempt`, one call that is judged while it streams under a `clock`; `ledger` keeps the records.
`resources` holds what all requests under one configuration share.

Knows neither Redis nor a backend's code, only Protocols: `attempt.EventSink` and `protocol.backend.Backend`.
"""
