"""One request asking its chain: decisions carried out, calls made and bounded, what they cost noted.

`run` loops over the decisions of `routing.chain_run`; `caller` gives a deployment its turn: a place among its calls, a
loaded model, and an `attempt`, one call that is judged while it streams under a `clock`; `ledger` keeps the records.
`resources` holds what all requests under one configuration share.

Imports the values of `config`, `routing`, `judging`, `accounting` and below.  Knows neither Redis nor a backend's code,
only Protocols: `attempt.EventSink` and `protocol.backend.Backend`.  Doors: `run`, `resources`, `ending`, `shortage`.

What a call is to heed of a request goes into `caller._make_call`; what may end an attempt early, into `attempt` (text)
or `clock` (time); what all requests share and a reload renews, into `resources`.
"""
