"""The daemon's own protocol over HTTP: requests as `request.schema.json` has them, events as the streams have them.

`asking` reads what a client sends, `telling` writes events and what is known of a request, `consent` judges a person's
word to a tool call.  `gateway.http.native` serves them.
"""
