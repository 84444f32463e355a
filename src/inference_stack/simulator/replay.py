"""Replay: a recording's calls made again on the production scheduler, and what it decides compared with what was decided.

    recording ─calls, results─▶ Scheduler ─plans, evictions─▶ compare ─▶ the first difference

The scheduler may be changed: then the first difference is where the change begins to matter, and what follows can only be counted,
with results made out for the plans that the changed scheduler makes. Knows no file.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b

import numpy as np

from inference_stack.core.errors import InferenceError, internal_error, invalid
from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.core.request import Continuation, Qos, Request, SamplingParams
from inference_stack.core.stats import StepTimeModel
from inference_stack.core.step import StepPlan, StepResult, TokenLogprob
from inference_stack.kv.events import Named
from inference_stack.kv.manager import KvManager
from inference_stack.kv.prefix import BlockHasher
from inference_stack.kv.slabs import ArenaGeometry, SlabPool
from inference_stack.policy.ordering import ORDERINGS
