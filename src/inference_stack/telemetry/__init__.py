"""Metrics, logs and accounts of what happened. Observes; decides nothing."""
