"""The data path under load: our gateway over simulated engines, beside a bare pump of events and other people's proxies.

`python -m bench.gateway install | run | bar | latency | streams | slope`. Every answer is checked by the load generator; how the
figures come about is in docs/benchmarks.md. Knows of our server only its command line, its API and its metrics.
"""
