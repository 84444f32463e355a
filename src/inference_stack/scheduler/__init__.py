"""Iteration-level scheduling: `plan(now)` says what the next step computes, `advance(result)` takes in what a step gave.

Pure: no clock, no I/O, no torch. The simulator runs these files byte for byte.
"""
