"""One worker process: reads requests, runs them, renews their leases, drains."""
