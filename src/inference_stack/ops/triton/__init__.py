"""Ops as Triton kernels, for GPUs. Imported only where they are wanted: it takes a while, and CPUs have no use for them."""
