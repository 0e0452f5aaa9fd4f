"""The front door: HTTP over the streams, for clients that have never heard of Redis.

It is a client of the queue like any other, and holds no state: what is to be known of a request is in its events.

`door` and `fault` are what a door is made of: an endpoint reads a body into a request's properties, and a voice tells
the answer as that protocol tells it.  `doors/` has a room for each protocol, `catalogue` the names that a request may
give as its model, `shown` the rule that shown text is never followed by another model's: all of them pure.  `http/` is
the server: it admits, submits, follows and writes.

Imports `client`, `config`, `protocol`, `routing.chains` and what lies below; never `worker`, `running` or a backend.
Another protocol: a room in `doors/`, its endpoints in `doors/__init__.py`.
"""
