"""The read side of the Durable Streams protocol, version 1 (github.com/durable-streams), over a request's events.

A request's events are a stream in its JSON mode, a message each, which its final event closes.  `offsets` are the
places in it, `page` is what a read brings.  `gateway.http.durable` serves them.
"""
