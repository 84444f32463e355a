import json
from pathlib import Path
from typing import Any

import pytest

from inference_stack.cli.background import free_port
from inference_stack.cli.bench.measure import run
from inference_stack.cli.bench.report import measure
from inference_stack.cli.bench.spec import Load, Outcome
from inference_stack.core.errors import InferenceError
from inference_stack.core.seams import SystemClock


def go(**settings: Any) -> tuple[dict[str, Any], list[Outcome]]:
    return run(Load(**settings), SystemClock(), lambda outcome: None)


def test_a_closed_loop_sends_every_job_after_warming_up(fake: Any) -> None:
    result, outcomes = go(url=fake.url + "/v1", concurrency=3, num_requests=7, input_len=5, output_len=2, warmup=2)
    assert (result["completed"], result["errors"]) == (7, {})
    assert len(outcomes) == 7
    bodies = fake.bodies("/v1/completions")
    assert len(bodies) == 9
    assert {body["model"] for body in bodies} == {"first"}
    assert result["prompt_tokens"] == 35
    assert result["output_tokens"] == 14


def test_a_closed_loop_never_exceeds_its_concurrency(fake: Any) -> None:
    go(url=fake.url, concurrency=3, num_requests=30, output_len=3, warmup=0)
    assert 1 <= fake.most_inside <= 3


def test_an_open_loop_sends_at_its_rate_and_obeys_the_cap(fake: Any) -> None:
    result, _ = go(url=fake.url, rate=2000.0, concurrency=2, num_requests=20, output_len=1, api="chat", input_len=4)
    assert result["completed"] == 20
    assert fake.most_inside <= 2
    assert len(fake.bodies("/v1/chat/completions")) == 21


def test_a_trace_sets_the_arrivals(fake: Any, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("timestamp,input_len,output_len\n0,4,1\n0.01,6,2\n")
    result, outcomes = go(url=fake.url, trace=str(tmp_path / "t.csv"), concurrency=0)
    assert result["completed"] == 2
    assert outcomes[1].begin - outcomes[0].begin == pytest.approx(0.01)
    assert result["prompt_tokens"] == 10


def test_the_same_seed_sends_the_same_prompts(fake: Any) -> None:
    for _ in range(2):
        go(url=fake.url, num_requests=3, warmup=0, seed=5)
    prompts = [body["prompt"] for body in fake.bodies("/v1/completions")]
    assert prompts[:3] == prompts[3:]


def test_the_report_prints_a_table_and_writes_json(
    fake: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.json"
    measure(Load(url=fake.url, num_requests=4, slo="ttft:60000", output=str(file), details=True, api_key="hidden"))
    written = json.loads(file.read_text())
    assert written["completed"] == len(written["requests"]) == 4
    assert written["goodput_per_s"] > 0
    assert "hidden" not in file.read_text()
    assert "to first token (TTFT)" in capsys.readouterr().out


def test_no_server_is_one_clear_error() -> None:
    with pytest.raises(InferenceError, match="no server at"):
        go(url=f"http://127.0.0.1:{free_port()}")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"prefix_len": 128}, "prefix-len"),
        ({"concurrency": 0}, "needs --rate"),
        ({"trace": "x", "dataset": "y"}, "exclude"),
        ({"trace": "x", "rate": 1.0}, "does not go with"),
        ({"dataset": "missing.jsonl"}, "no file"),
        ({"slo": "x"}, "objective"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_sent(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(InferenceError, match=expected):
        go(**settings)
