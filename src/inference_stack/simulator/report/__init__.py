"""What a simulation found, for people and for programs: numbers, one HTML page, JSON, and two runs side by side.

Reads a finished `Run`. Knows nothing of how it came about.
"""
