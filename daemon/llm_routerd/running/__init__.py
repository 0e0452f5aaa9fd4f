"""One request asking its chain: decisions carried out, calls made and bounded, what they cost noted.

`run` loops over the decisions of `routing.chain_run`; `caller` gives a deployment its turn: a place among its calls, a
loaded model, and an `attempt`, one call that is judged while it streams under a `clock`; `ledger` keeps the records.
`resources` holds what all requests under one configuration share.

Around a call: `slots` and `warmth` are its place and its loaded model, `fitting` says whether its prompt fits and into
how large a window (`windows` of all deployments, `model_window` of one model), `examination` a probe of our own,
`shortage` what this process lacks, `validation` a process for what would take long.  What comes of all: `ending`.

Imports `accounting`, `routing`, `judging`, `protocol` and the values of `config`.  Knows neither Redis nor a backend's
code, only Protocols: `attempt.EventSink` and `protocol.backend.Backend`.
Another sink is a class with the methods of `EventSink`.  What all requests share is an attribute of `Resources`, and
what bounds a call, one of `clock.Bounds`.
"""
