"""Pure decisions: ordering, admission, budgets, the step-time model. No I/O, no clock, no torch."""
