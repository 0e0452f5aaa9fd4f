"""What is promised on the wire: requests, events, codes, keys; and the call that is made of a request.

Pure: no event loop, no network, no clock.  Imports `errors`, and `jsonschema`, since a request holds a
compiled schema.

The types are the wire: a Struct is encoded as it is, and `schemas/` is made of the types by `make schemas`.

- A property of a request: a line in `RequestFields` and a field of `Request`, in `request.py`, and whoever heeds it.
- An event: a class in `events.py`, there a line in the union, and an example in `examples.py`.
- A property of what we write: a field, with what it is; whoever reads passes over those that it does not know.
"""
