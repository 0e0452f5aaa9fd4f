"""What requests have used, cost and saved; counters, and their exposition for Prometheus.

- `pricing`: what tokens cost; `estimate`: how many they were where nobody counted them.
- `totals`: sums over calls, of a deployment or of a tenant.
- `metrics`: the metrics event of each request, and its numbers once its final event stands.
- `counters`, `gauges`: what Prometheus is shown: what was counted, and what is so at the moment.
- `tally`: what is merely counted as it happens.
- `families`: the metrics themselves, a row each; `exposition`: the text format.

Pure: takes times as values.  Imports `protocol`, `routing` (whose states it shows) and the values of `config`.

Something new to be counted is a line in `tally` and a `Metrics.count` where it happens; any other metric, a row in
`families` and the number that it shows, in `counters` or `gauges`.
"""
