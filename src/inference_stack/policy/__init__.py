"""Pure decisions: who goes first, how much prompt a step may carry, how long a step takes, who is let in.

Functions and small state machines over numbers. Knows nothing of clocks, I/O, torch, or of how its answers are carried out.
"""
