"""`attend` by FlashAttention-3, from a package that is installed beside ours and taken only where the configuration names it."""
