"""Which node computes which request, and how a stream goes on when its worker, node or link does not. Pure: no sockets, no tasks.

The gateway runs this on the machine's clock, the simulator on a virtual one.
"""
