"""Whether what a model says is an answer: refusals, thinking, leaked calls, the JSON that was asked for.

Pure.  Imports `protocol` and `jsonschema`; the rest of the house meets it in `judge.Judge`.
"""
