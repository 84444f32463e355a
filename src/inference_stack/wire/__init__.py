"""Messages between processes and their encodings.

Typed dataclasses in, bytes out. Knows nothing of what a message makes its receiver do.
"""
