"""Messages between gateways and nodes survive their encoding, whatever is in them; other versions are understood."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_stack.core.errors import ErrorInfo, InferenceError
from inference_stack.core.fleet import ModelInfo, NodeState, WorkerState
from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.core.request import Continuation, FinishReason, Qos, Request, SamplingParams
from inference_stack.core.stats import InstanceStats, Ledger, StepTimeModel
from inference_stack.core.step import TokenDelta, TokenLogprob
from inference_stack.wire.codec import ProtocolError
from inference_stack.wire.grpc import fleet_pb2
from inference_stack.wire.grpc.ends import GatewayEnd, NodeEnd
from inference_stack.wire.grpc.mirror import Mirror
from inference_stack.wire.grpc.protocol import spoken
from inference_stack.wire.messages import Abort, Attach, Beat, DrainNode, Lost, StepReport, Submit
from tests.wire import strategies

DATA = Path(__file__).parents[1] / "data" / "wire" / "v1"
REQUEST = Request(
    id="chatcmpl-1-0",
    model="smollm2",
    continuation=Continuation(
        prompt=(1, 2, 300),
        params=SamplingParams(max_tokens=9, logit_bias={7: -1.5}, stop_token_ids=(2,), logprobs=0),
        seed=2**64 - 1,
        choice=1,
        emitted=(5, 70000),
    ),
    qos=Qos(tenant="t", priority=-100, weight=2.0, deadline=1.5, residency=("eu",)),
    attempt=1 << 16 | 2,
    arrival=0.25,
    cache_salt="s",
    isolated=True,
)
ENTRY = TokenLogprob(token=9, logprob=-0.5, rank=1, top=((9, -0.5), (8, -1.0)))
ERROR = ErrorInfo(message="m", code="numerical_fault", status=500)
REPORT = StepReport(
    deltas=(
        TokenDelta(REQUEST.id, REQUEST.attempt, (9,), (ENTRY,), (ENTRY, ENTRY), 16, None, None, 0.5),
        TokenDelta("other", 3, (1, 2)),
        TokenDelta(REQUEST.id, REQUEST.attempt, (), finish=FinishReason.ERROR, error=ERROR),
    ),
    stats=(InstanceStats(model="smollm2", running=3, step_seconds=0.5, step_time=StepTimeModel(base=0.001)),),
    at=1e9,
)
STATE = NodeState(
    node="n1",
    ready=True,
    models=(
        ModelInfo(
            name="smollm2",
            architecture="LlamaForCausalLM",
            numerics_id="abc",
            max_model_len=2048,
            vocab_size=49152,
            eos_tokens=(2,),
            kv_groups=(KvGroupSpec(name="full", layers=(0, 1), kv_heads=3, head_dim=64, window=None),),
            kv_blocks=100,
            max_running=64,
        ),
    ),
    workers=(WorkerState(pid=7, device="cpu", state="ready", restarts=1),),
    ledgers=(Ledger(stages=(("load", 1.5),), total_seconds=2.0, memory=(("kv", 1 << 33),), derived={"threads": "2"}),),
    error=ERROR,
    boot="b",
)
DOWN: dict[str, Any] = {
    "attach": Attach(wire_version=1, gateway="g", boot="b"),
    "submit": Submit(requests=(REQUEST,)),
    "beat": Beat(number=3, heard=2),
    "drain_node": DrainNode(seconds=30.0, undo=True),
    "abort": Abort(request_ids=("x", "y")),
}
UP: dict[str, Any] = {
    "step_report": REPORT,
    "lost": Lost(request_ids=(REQUEST.id,), reason="worker died", present=True),
    "node_state": STATE,
    "beat": Beat(number=1, heard=0),
}


def over(sender: GatewayEnd | NodeEnd, receiver: GatewayEnd | NodeEnd, message: Any) -> Any:
    (received,) = receiver.decode(sender.encode(message))
    return received


@given(st.lists(strategies.requests, max_size=3))
def test_requests_survive(requests: list[Request]) -> None:
    message = Submit(requests=tuple(requests))
    assert over(GatewayEnd(), NodeEnd(), message) == message


@settings(max_examples=35)
@given(strategies.reports)
def test_reports_about_unknown_requests_survive(report: StepReport) -> None:
    assert over(NodeEnd(), GatewayEnd(), report) == report


@settings(max_examples=35)
@given(st.lists(strategies.reports, max_size=4))
def test_reports_about_submitted_requests_survive(reports: list[StepReport]) -> None:
    gateway, node = GatewayEnd(), NodeEnd()
    for name in "ab":
        over(gateway, node, Submit(requests=(replace(REQUEST, id=name, attempt=1),)))
    assert [over(node, gateway, report) for report in reports] == reports


@settings(max_examples=35)
@given(strategies.states)
def test_states_survive(state: NodeState) -> None:
    assert over(NodeEnd(), GatewayEnd(), state) == state


@pytest.mark.parametrize("name", DOWN)
def test_what_a_gateway_sends_survives(name: str) -> None:
    assert over(GatewayEnd(), NodeEnd(), DOWN[name]) == DOWN[name]


@pytest.mark.parametrize("name", UP)
def test_what_a_node_sends_survives(name: str) -> None:
    assert over(NodeEnd(), GatewayEnd(), UP[name]) == UP[name]


def test_known_requests_are_called_by_small_numbers() -> None:
    gateway, node = GatewayEnd(), NodeEnd()
    over(gateway, node, Submit(requests=(replace(REQUEST, id="x" * 100),)))
    delta = TokenDelta("x" * 100, REQUEST.attempt, (5,))
    assert len(node.encode(StepReport(deltas=(delta,)))) < 20


def test_ends_losses_and_aborts_leave_nothing_behind() -> None:
    gateway, node = GatewayEnd(), NodeEnd()
    over(gateway, node, Submit(requests=tuple(replace(REQUEST, id=name) for name in "abcd")))
    over(node, gateway, StepReport(deltas=(TokenDelta("a", REQUEST.attempt, finish=FinishReason.STOP),)))
    over(node, gateway, Lost(request_ids=("b",), reason="", present=False))
    over(gateway, node, Abort(request_ids=("c",)))
    over(gateway, node, Submit(requests=(replace(REQUEST, id="d", attempt=REQUEST.attempt + 1),)))
    for end in (gateway, node):
        assert list(end.handles.live) == ["d"]
        assert list(end.handles.names.values()) == [("d", REQUEST.attempt + 1)]


def test_news_of_a_request_that_was_aborted_meanwhile_is_dropped_and_the_rest_kept() -> None:
    gateway, node = GatewayEnd(), NodeEnd()
    over(gateway, node, Submit(requests=(replace(REQUEST, id="a"), replace(REQUEST, id="b"))))
    gone = TokenDelta("a", REQUEST.attempt, (1,), cached_tokens=1, finish=FinishReason.STOP)
    kept = TokenDelta("b", REQUEST.attempt, (2, 3), cached_tokens=2)
    data = node.encode(StepReport(deltas=(gone, kept)))
    gateway.encode(Abort(request_ids=("a",)))
    assert gateway.decode(data) == (StepReport(deltas=(kept,)),)


def test_a_loss_that_crosses_a_new_attempt_does_not_hide_its_tokens() -> None:
    gateway, node = GatewayEnd(), NodeEnd()
    over(gateway, node, Submit(requests=(REQUEST,)))
    lost = node.encode(Lost(request_ids=(REQUEST.id,), reason="", present=True))
    again = replace(REQUEST, attempt=REQUEST.attempt + 1)
    over(gateway, node, Submit(requests=(again,)))
    gateway.decode(lost)
    report = StepReport(deltas=(TokenDelta(again.id, again.attempt, (1,)),))
    assert over(node, gateway, report) == report


def test_adjacent_versions_speak_the_lower_one() -> None:
    assert [spoken(theirs, 5) for theirs in (4, 5, 6)] == [4, 5, 5]


@pytest.mark.parametrize("theirs", [3, 7])
def test_other_versions_are_refused_by_name(theirs: int) -> None:
    with pytest.raises(InferenceError, match=f"wire version {theirs}, and this one 5") as refusal:
        spoken(theirs, 5)
    assert refusal.value.info.code == "wire_version"


@pytest.mark.parametrize(("folder", "messages"), [("down", DOWN), ("up", UP)])
def test_messages_of_version_1_are_understood(folder: str, messages: dict[str, Any]) -> None:
    """The files were written by the first build that spoke it, and never change."""
    sender, receiver = (GatewayEnd(), NodeEnd()) if folder == "down" else (NodeEnd(), GatewayEnd())
    for name, message in messages.items():
        assert list(receiver.decode((DATA / folder / f"{name}.bin").read_bytes())) == [message], name
        assert over(sender, type(receiver)(), message) == message


def test_unknown_fields_and_kinds_are_ignored() -> None:
    unknown = b"\xfa\x3e\x03abc"  # field 1007, three bytes
    data = GatewayEnd().encode(DOWN["submit"])
    assert list(NodeEnd().decode(data + unknown)) == [DOWN["submit"]]
    later = b"\xba\x3e\x04\x0a\x02hi"  # a message of kind 999
    assert NodeEnd().decode(later) == ()
    assert GatewayEnd().decode(later) == ()


def test_unknown_fields_inside_a_report_are_ignored() -> None:
    message = fleet_pb2.FromNode.FromString(NodeEnd().encode(REPORT))  # type: ignore[attr-defined]
    message.step_report.MergeFromString(b"\xfa\x3e\x03abc")
    message.step_report.extras[0].MergeFromString(b"\xfa\x3e\x03abc")
    assert GatewayEnd().decode(message.SerializeToString()) == (REPORT,)


@given(st.binary(max_size=100))
def test_garbage_is_a_protocol_error_or_nothing(data: bytes) -> None:
    for end in (GatewayEnd(), NodeEnd()):
        try:
            end.decode(data)
        except ProtocolError:
            continue


@given(st.sampled_from(sorted(UP)), st.integers(0, 10_000), st.integers(0, 255))
def test_a_damaged_message_is_refused_or_a_message(name: str, position: int, byte: int) -> None:
    data = bytearray(NodeEnd().encode(UP[name]))
    data[position % len(data)] = byte
    try:
        messages = GatewayEnd().decode(bytes(data))
    except ProtocolError:
        return
    assert all(isinstance(message, StepReport | Lost | NodeState | Beat) for message in messages)


def test_columns_of_different_lengths_are_refused() -> None:
    message = fleet_pb2.FromNode.FromString(NodeEnd().encode(REPORT))  # type: ignore[attr-defined]
    message.step_report.handles.append(0)
    with pytest.raises(ProtocolError):
        GatewayEnd().decode(message.SerializeToString())


def test_a_field_that_the_contract_lacks_is_noticed() -> None:
    with pytest.raises(TypeError, match="NodeState"):
        Mirror(NodeState, fleet_pb2.Beat)  # type: ignore[attr-defined]
