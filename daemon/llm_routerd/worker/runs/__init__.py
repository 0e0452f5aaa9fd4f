"""Runs with tools, as a worker drives them: `walk` goes on with one, `mailroom` keeps those that rest, and hears.

A run that waits for tools or people takes no place, no task and no connection: of it there is its entry's place in the
table of what is in flight, so that its lease goes on.  When it wakes it is read from Redis again, and replayed: whoever
took it over from a dead worker does the same.
"""
