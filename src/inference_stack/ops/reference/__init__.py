"""The specification of every op in torch: written for exactness first, fast enough to serve with on a CPU.

Each file's docstring says what its op computes. Elementwise work uses only IEEE arithmetic, exp, log and tanh, because torch's
fused activations round differently at the ends of a thread's share. Nothing here knows a model, a request or a plan.
"""
