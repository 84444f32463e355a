"""Random messages of a link, with every field that there is."""

from typing import Any

from hypothesis import strategies as st

from inference_stack.core.errors import ErrorInfo
from inference_stack.core.fleet import ModelInfo, NodeState, WorkerState
from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.core.request import Continuation, FinishReason, Qos, Request, SamplingParams
from inference_stack.core.stats import GpuStats, InstanceStats, Ledger, StepTimeModel
from inference_stack.core.step import TokenDelta, TokenLogprob
from inference_stack.wire.messages import StepReport

Strategy = st.SearchStrategy[Any]

text = st.text(max_size=6)
real = st.floats(allow_nan=False)
natural = st.integers(0, 2**31 - 1)
flag = st.booleans()


def optional(values: Strategy) -> Strategy:
    return st.none() | values


def several(values: Strategy, most: int = 3) -> Strategy:
    return st.lists(values, max_size=most).map(tuple)


def fields(kind: type, **given: Strategy) -> Strategy:
    """Instances of `kind`; fields that are not given are made up by their annotations."""
    return st.builds(kind, **{name: made(hint) for name, hint in hints(kind).items() if name not in given}, **given)


def hints(kind: type) -> dict[str, str]:
    return {name: str(hint) for name, hint in kind.__annotations__.items()}


SCALARS = {
    "str": text,
    "str | None": optional(text),
    "int": natural,
    "int | None": optional(natural),
    "float": real,
    "float | None": optional(real),
    "bool": flag,
    "tuple[int, ...]": several(natural),
    "tuple[str, ...]": several(text),
}


def made(hint: str) -> Strategy:
    return SCALARS[hint]


step_times = fields(StepTimeModel)
stats = fields(InstanceStats, step_time=step_times)
errors = fields(ErrorInfo)
pairs = several(st.tuples(natural, real))
logprobs = several(fields(TokenLogprob, top=pairs))

requests = fields(
    Request,
    qos=fields(Qos, priority=st.integers(-(2**31), 2**31 - 1)),
    attempt=st.integers(0, 2**63),
    continuation=fields(
        Continuation,
        prompt=several(natural, 40),
        seed=st.integers(0, 2**64 - 1),
        params=fields(SamplingParams, logit_bias=st.dictionaries(natural, real, max_size=3)),
    ),
)
deltas = fields(
    TokenDelta,
    request_id=st.sampled_from(["a", "b", "c"]),
    attempt=st.integers(0, 2),
    logprobs=logprobs,
    prompt_logprobs=optional(logprobs),
    finish=optional(st.sampled_from(FinishReason)),
    error=optional(errors),
)
reports = fields(StepReport, deltas=several(deltas, 12), stats=several(stats))
states = fields(
    NodeState,
    models=several(fields(ModelInfo, kv_groups=several(fields(KvGroupSpec)), step_time=step_times)),
    workers=several(fields(WorkerState)),
    gpus=several(fields(GpuStats)),
    ledgers=several(
        fields(
            Ledger,
            stages=several(st.tuples(text, real)),
            memory=several(st.tuples(text, natural)),
            derived=st.dictionaries(text, text, max_size=3),
        )
    ),
    error=optional(errors),
)
