"""The vocabulary every room speaks: requests, plans, results, errors and seams.

Plain typed dataclasses and protocols. Knows nothing of models, transports, clocks or torch; it may use numpy for columns.
"""
