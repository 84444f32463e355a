"""Ops for CPUs in native code: one C++ extension (`csrc/`), called with addresses of raw memory.

`native` owns the threads and the recording in progress; the other files each wrap a few operations. A processor's fastest kernels
are taken only after they gave the portable ones' bits (`selfcheck`). Knows ops; it knows no model and no request.
"""
