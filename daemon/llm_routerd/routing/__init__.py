"""Whom to ask next: a chain's state machine, and what is remembered of each deployment.

- `chains`: what a request's `model` names, and what that falls back to.
- `eligibility`: which deployments a request may ask, and which none may.
- `chain_run`: one request's way through its chain.
- `health`: what all requests share: the breaker and the load of each deployment, by name.
- `deployment_breaker`: whose fault a failure is, and who is kept away for it; `breaker`: one circuit breaker.
- `load`: calls in flight, time to first token, and the choice by them.

Pure: takes `now` and `rng`.  Imports `protocol` and the values of `config`.

What a failure means to breaker and chain is told by the traits of its code (`protocol.codes`), and nowhere here.  A new
demand on deployments is a field of `Need` and a line in `ineligibility`; a new strategy, a function beside `load.draw`
and a branch of `ChainRun._choose`.
"""
