"""Ops as Triton kernels, for GPUs. Nothing here is imported unless Triton is wanted: it takes a while, and CPUs have no use for it."""
