"""Text to tokens and back: templates, tokenisers, detokenisation, stop strings. Nothing of HTTP or engines."""
