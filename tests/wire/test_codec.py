"""Messages survive their encoding; garbage is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_stack.config.tree import Config, ModelEntry, from_plain, to_plain
from inference_stack.core.request import Continuation, FinishReason, Qos, Request, SamplingParams
from inference_stack.core.step import BlockDelta, NewSlot, StepPlan, StepResult, TokenDelta, TokenLogprob, ints
from inference_stack.wire.codec import ProtocolError, decode, encode
from inference_stack.wire.deadlines import arrived, departing
from inference_stack.wire.messages import Abort, Configure, Drain, StepReport, Submit

PARAMS = SamplingParams(logit_bias={3: -1.5}, stop_token_ids=(7,), logprobs=2)


def request(**changes: object) -> Request:
    known = Continuation(prompt=(1, 2), params=PARAMS, seed=2**64 - 1, choice=1, emitted=(5,))
    return Request(id="r", model="m", continuation=known, **changes)  # type: ignore[arg-type]


def test_requests_survive() -> None:
    message = Submit(requests=(request(qos=Qos(priority=100, deadline=1.5), attempt=3),))
    assert decode(encode(message)) == message


def test_configurations_survive() -> None:
    config = Config(models=(ModelEntry(model="m", name="n"),))
    assert from_plain(decode(encode(Configure(config=to_plain(config)))).config) == config


def test_reports_survive() -> None:
    entry = TokenLogprob(token=1, logprob=-0.5, rank=1, top=((1, -0.5), (2, -1.0)))
    delta = TokenDelta(request_id="r", tokens=(1,), logprobs=(entry,), finish=FinishReason.STOP)
    assert decode(encode(StepReport(deltas=(delta,)))) == StepReport(deltas=(delta,))


def test_plans_survive_with_their_columns() -> None:
    new = NewSlot(slot=4, request_id="r", tokens=(1, 2), prompt_len=2, computed=0, params=PARAMS, seed=1)
    blocks = (BlockDelta(slots=ints([4]), index=ints([0]), blocks=ints([9])),)
    plan = StepPlan(
        step=1,
        model="m",
        slots=ints([4]),
        start=ints([0]),
        num_tokens=ints([2]),
        samples=ints([1]),
        new=(new,),
        blocks=blocks,
        drafts=ints([[5, -1]]),
        grammar=np.array([[2**32 - 1]], dtype=np.uint32),
    )
    back = decode(encode(plan))
    assert back.new == plan.new
    assert back.blocks[0].blocks.tolist() == [9]
    assert back.drafts.dtype == np.int32 and back.drafts.tolist() == [[5, -1]]
    assert back.grammar.dtype == np.uint32 and back.grammar.tolist() == [[2**32 - 1]]


def test_results_survive_with_their_columns() -> None:
    result = StepResult(step=1, model="m", tokens=ints([[3, -1]]), counts=ints([1]), seconds=0.5)
    back = decode(encode(result))
    assert (back.tokens.tolist(), back.counts.tolist(), back.seconds) == ([[3, -1]], [1], 0.5)


def test_messages_without_fields_survive() -> None:
    assert decode(encode(Drain())) == Drain()


@given(st.binary(max_size=200))
def test_garbage_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(data)


@given(st.integers(0, 200), st.integers(0, 255))
def test_a_damaged_message_is_refused_or_a_message(position: int, byte: int) -> None:
    data = bytearray(encode(Submit(requests=(request(),))))
    data[position % len(data)] = byte
    try:
        message = decode(bytes(data))
    except ProtocolError:
        return
    assert isinstance(message, (Submit, Abort, Drain))


def test_deadlines_travel_as_time_left() -> None:
    sent = departing(request(qos=Qos(deadline=107.0, ttft_deadline=103.0), arrival=99.0), now=100.0)
    assert (sent.qos.deadline, sent.qos.ttft_deadline, sent.arrival) == (7.0, 3.0, 1.0)
    there = arrived(sent, now=5000.0)
    assert (there.qos.deadline, there.qos.ttft_deadline, there.arrival) == (5007.0, 5003.0, 4999.0)
