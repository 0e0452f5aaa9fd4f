"""The queue's driver: from what Redis hands over to the end that stands there.

`worker` starts up, reloads and drains; each `shard` of the queue that it serves (by its `placement`) has its own way
to Redis, and all share the `places`: it reads, `intake` gives each delivery a task; `handler` walks it: `admission`
(with the `gates`), `running.Run`, `settling` (through `committing`); `leases`, `orphans`, `trimmed` and `mending` see
to what the walk may meet.  `supervisor` watches every task, `troubles` says why a worker is not ready.

Words for stages of one thing: a *delivery* is what Redis has handed over; what is *in flight* is the record of a
delivery that this worker is busy with; a *run* is that request asking its chain, of which each *attempt* is one call.

Imports `running`, `queue`, `accounting`, `routing`, `protocol` and the values of `config`: neither HTTP nor a backend.
To add a gate on requests: a function in a file of `gates/`, and a line in `GATES`.
To add an observer of what has become of requests: a file with an `Observer`, and a line in `Shard._furnish`.
"""
