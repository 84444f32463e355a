"""The work of `istack quantize` and `istack evaluate`."""
