"""What is promised on the wire: requests, events, codes, keys; and the call that is made of a request.

Pure: no event loop, no network, no clock.  Imports `jsonschema` only, since a request holds a compiled schema.
"""
