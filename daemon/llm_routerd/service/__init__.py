"""One process around one worker: start-up, signals, systemd, reloads, health and metrics over HTTP, an embedded server.

`daemon` is the process; `health_http` its page, `notify` its words to systemd, `embedded` the Valkey that it may bring
along (`memory`: how large that may grow), `limits` and `garbage` what it asks of the system and of Python.
It may import everything but the command line, the router and the client.  To add a page: a line in `health_http`.
"""
