"""The Redis side; the only place that imports `redis`."""
