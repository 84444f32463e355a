"""Measures and checks one GPU: `python -m bench.gpu probe|check|engine|ops|peer|plots`.

Needs torch, and Triton for our kernels; no other package than the engine core's own. Every command runs on the CPU as well, with
`--device cpu --tiny`, so that no line of it is met for the first time on a card.
"""
