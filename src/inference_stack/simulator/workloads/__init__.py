"""Traffic to simulate: made up from arrival processes and contents, or read from recorded traces.

Everything yields `Arrival`s lazily, the same on each iteration. Knows neither fleet nor clock.
"""

from inference_stack.simulator.workloads.plain import workload_from

__all__ = ["workload_from"]
