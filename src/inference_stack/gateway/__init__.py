"""The HTTP face: OpenAI's API, admission, dispatch and continuation, streaming.

Text becomes tokens here (through `frontend`) and tokens text; no torch, and nothing of devices.
"""
