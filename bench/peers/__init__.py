"""Our server beside other people's, on one machine, with one model and the same prompts, one after the other.

`python -m bench.peers install | run | report`. Peers come from public packages, each in an environment of its own; what is
measured and how to read it is in docs/benchmarks.md. Knows nothing of how any server works inside.
"""
