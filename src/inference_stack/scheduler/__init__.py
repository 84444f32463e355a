"""Iteration-level scheduling as a pure function of what happened: plan, then advance."""
