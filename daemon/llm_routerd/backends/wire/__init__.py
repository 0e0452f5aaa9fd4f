"""What every protocol goes over, from an address to the end of one call.

`endpoint` (where to), `transport` and `connector` (the connections), `framing`, `sse` and `messages` (from bytes to
events), `exchange` (one call from the POST to its end).

Imports `faults` of the room above, and no protocol.  What two protocols would each do for themselves comes here.
"""
