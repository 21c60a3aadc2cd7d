"""testenv-broker: a Gearman server that may be exposed.

`exchange` is the heart: jobs, functions, workers, who wakes and who gets what; pure but for an
injected clock. `requests` (binary) and `text` (admin) turn what a peer says into its calls,
`access` says who may. `transport` is the socket side, `service` the process: listening, signals,
reload, drain.
"""
