"""Whether what a model says is an answer: refusals, thinking, leaked calls, the JSON that was asked for.

Pure.  Imports `protocol` and `jsonschema`.  The house enters by three modules: `judge`, with a `Judge` per attempt,
`refusal`, whose detector all attempts share, and `calls`, which says what is wrong with a call of a tool;
`refusal_mode` is a type for the configuration.

A `Judge` asks the others.  While text comes: `thinking` (and `harmony`) splits it, `jsonguard` or `refusal` (by
`refusal_phrases`) watches it.  When it has ended: `verdicts`, `calls` and `leaked_calls` take the whole.

The guard is written by hand, since it must be weaker than its schema and never stronger.  llguidance was tried: it
refuses other orders of properties than the schema's, and takes 71 µs where this takes 19.

A tag that opens thinking is a word in `thinking`, markup of leaked calls one in `leaked_calls`, a way to refuse one in
`refusal_phrases`, which `tests/judging/refusals` measures.  What else may be wrong with a whole answer is a function
in `verdicts`; a keyword that the guard is to know belongs to `jsonschema`.
"""
