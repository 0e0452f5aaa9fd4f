"""Whom to ask next: a chain's state machine, and the health of deployments.

Pure: takes `now` and `rng`.  Imports `protocol` and the values of `config`.
"""
