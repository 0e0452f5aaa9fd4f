"""JSON Schemas that callers send: whether one is safe to keep, what it says, and judging by it.

Pure, and the ground floor: it imports nothing of the project.  The house enters by four modules:

- `compiled`: a schema is compiled once, and judges whole answers;
- `shape`: what a schema certainly forbids of an answer that is still incomplete;
- `values`: the walk through a parsed JSON value, and where a JSON Pointer leads in one;
- `path`: JSON paths, as people read them.

The names are not gathered here: `compiled` loads the engine, and producers, who need only `values`, go without.
The rest is the room's own: `dialects` and `keywords` are tables, `graph` joins the subschemas of a document by its
references, `safety` bounds what that graph may cost, `subschemas` says which of them certainly apply.

A dialect is a row in `dialects`.  A keyword is known to the engine already; where it holds subschemas it is a row in
`keywords`, so that they are examined, and where an incomplete answer can be judged by it, a line in `Shape` (of the
value itself) or in `Subschemas` (of its parts).
"""
