"""Device operations behind one interface: the torch reference (the specification) and faster implementations.

Ops take their outputs from the step's planned workspace. This room knows tensors and shapes; it knows no model, request or plan.

Shape letters, here and in `models` and `engine`: T query tokens of the step, R rows (requests), S sampled positions,
D model width, H query heads, G KV heads, E head dim, K/N a linear's input/output width, I MLP width, V vocabulary,
B block-table width, C context tokens.
"""
