"""Text to tokens and back: templates, tokenisers, incremental detokenisation, stop strings. Nothing of HTTP or engines."""
