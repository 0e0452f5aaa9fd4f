"""The Redis side of a worker: lanes, leases, events streams; with `client`, the only place that imports `redis`.

- `broker` is what a worker asks, along its verbs: `intake` (claim, orphans), `lease` (renew, register), `settle`
  (begin, commit, hand back, history); `member` is what they share.
- Further verbs on a broker, each with a reason of its own: `marks`, `mending`, `parting`, `passing`, `search`.
- `boxes` is the picture of the local boxes that workers share, `local_boxes` that of one process without Redis, and
  `picture` what both tell and the rules that both keep.
- `reader` reads new requests, on a connection of its own; `outbox` has the events on their way.
- `deliveries` are the values that come and go; `lanes` knows which lanes can be served.
- `scripts` is what happens at once or not at all; `connection` how Redis is reached.

Doors, for worker and client: `broker` and the further verbs, `boxes`, `local_boxes`, `picture`, `reader`, `outbox`,
`deliveries`, `connection`, `scripts`.
It may import `protocol`, `errors` and `config.addresses`; it knows no worker, no model and no configuration.
A new question to Redis: one command is a method of the verb that it belongs to; what must happen at once is a script.
"""
