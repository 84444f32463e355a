"""The data path under load: our gateway over simulated engines, beside a bare pump of events and other people's proxies.

`python -m bench.gateway install | run | bar | latency | streams | slope`. The load generator checks every answer; figures need a
machine with nothing else to do (`others` in a result says what it did). Knows of our server only command line, API and metrics.
"""
