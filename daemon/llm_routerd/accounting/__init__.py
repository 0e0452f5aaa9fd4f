"""What requests have used, cost and saved; counters, and their exposition for Prometheus.

Pure: takes times as values.  Imports `protocol`, `routing` (whose states it shows) and the values of `config`.
"""
