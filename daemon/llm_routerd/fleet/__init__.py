"""The local fleet: which waiting call begins on which box, and in which order.

- `picture`: what all workers know of boxes and calls: an estimate, and never a promise.
- `estimates`: load seconds and tokens/s, as they were seen; what is taken where nothing has been.
- `plan`: the rule.  `make_plan` names the calls that begin now, and tells the others how long, and why, they wait.
- `order`: fair among tenants; `standing`: one box while a plan is made; `options`: what a box costs a call;
  `affinity`: which of boxes that cost the same; `preemption`: whom to cut for the high lane.

Pure: takes `now`.  Imports `msgspec` alone.  What must never happen twice (a slot that is taken) is for a script in
Redis to hold: two workers that see the same picture at the same time come to the same plan, and others may not.
"""
