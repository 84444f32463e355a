"""Architectures as plain functional code over `ops`, and the loaders that fill them with weights.

A model file reads as the paper's equations. This room knows tensors and checkpoints; it knows no request, plan or
process.
"""
