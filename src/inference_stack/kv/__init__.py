"""KV bookkeeping: which block of which slab belongs to whom, and which prefixes are remembered.

Everything is integers and hashes. Knows nothing of tensors, devices, clocks or models; workers turn its block numbers into
addresses by arithmetic alone (`slabs.ArenaGeometry`).
"""
