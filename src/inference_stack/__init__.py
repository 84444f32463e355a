"""Inference Stack: production-grade serving of language models, from one laptop to several data centres."""

__version__ = "0.1.0"
