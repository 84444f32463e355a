"""attend by tokenspeed-fa3, of which a fake does what the package documents: our arguments, our refusals, our self-check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.ops.api import HeadSpec, KvLayer
from inference_stack.ops.fa3 import wheel
from inference_stack.ops.fa3.attention import Fa3Attention
from inference_stack.ops.fa3.implementations import fa3_implementations
from inference_stack.ops.fa3.pages import pages
from inference_stack.ops.fa3.selfcheck import disagreement
from inference_stack.ops.registry import NoImplementation, Registry, build_ops, gpu_registry, reference_implementations
from inference_stack.ops.triton.settings import TritonSettings
from inference_stack.ops.workspace import Workspace
from tests.engine.emulated import no_reads
from tests.ops.parts import Paged, make_ops
from tests.ops.triton.fake_fa3 import flash_attn_with_kvcache
from tests.ops.triton.gpu_parts import GpuOps, heads_of, projection, recorded_form

HALF = TritonSettings(dtype=torch.float16)
CPU = torch.device("cpu")
MIXED = [(29, 30), (0, 25), (0, 1), (70, 75), (40, 64), (31, 32), (16, 17)]
"""Decode, a prompt, a lone token, a verified draft, a chunk, and tokens at both ends of a block."""


class Fa3Ops:
    """`rope_store` as Triton has it, `attend` by the fake; `stored` runs it on the reference for comparison."""

    def __init__(self, run: Callable[..., Tensor] = flash_attn_with_kvcache) -> None:
        self.store = GpuOps().rope_store
        self.attend = Fa3Attention(run)

    def rope_store(self, qkv_TX: Tensor, heads: HeadSpec, kv: KvLayer, step: Any) -> Tensor:
        return self.store(qkv_TX.half(), heads, kv, step).half()


def both(
    heads: HeadSpec, bounds: list[tuple[int, int]], window: int | None = None, sinks_H: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Outputs of one step (positions start … stop-1 of each request, all before known) by the package and the reference."""
    found = []
    for ops in (Fa3Ops(), make_ops()):
        page = Paged(heads, window=window, dtype=torch.float16, granules=2)
        parts = [(page.sequence(projection(heads, stop, stop).half().float()), start, stop) for start, stop in bounds]
        earlier = [(request, 0, start) for request, start, _ in parts if start]
        step, qkv_TX = page.step(earlier)
        ops.rope_store(qkv_TX, heads, page.kv, step)  # type: ignore[union-attr]
        found.append(torch.cat(page.run(ops, parts, 0.0, sinks_H)).float())  # type: ignore[arg-type]
    return found[0], found[1]


@pytest.mark.parametrize("window", [None, 21])
@pytest.mark.parametrize("sinks", [False, True])
def test_a_mixed_step_equals_the_reference(window: int | None, sinks: bool) -> None:
    sinks_H = torch.tensor([-50.0, 0.0, 0.5, 4.0, 8.0, 1.5]) if sinks else None
    got, expected = both(heads_of(6, 2, 64), MIXED, window, sinks_H)
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("q_heads", "kv_heads", "head_dim"), [(2, 2, 64), (8, 1, 128), (7, 1, 64), (3, 1, 192), (2, 1, 256)]
)
def test_groups_and_head_dimensions(q_heads: int, kv_heads: int, head_dim: int) -> None:
    got, expected = both(heads_of(q_heads, kv_heads, head_dim), [(75, 76), (1, 23)])
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-2)


def test_recorded_steps_have_no_host_integers_and_rows_that_know_nothing() -> None:
    heads = heads_of(4, 2, 64)
    page = Paged(heads, dtype=torch.float16, granules=1)
    parts = [(page.sequence(projection(heads, length, length)), length - 1, length) for length in (2, 140, 33)]
    ops = Fa3Ops()
    step, qkv_TX = page.step([(request, 0, stop - 1) for request, _, stop in parts])
    ops.rope_store(qkv_TX, heads, page.kv, step)
    eager, qkv_TX = page.step(parts)
    q_THE = ops.rope_store(qkv_TX, heads, page.kv, eager)
    expected = ops.attend(q_THE, page.kv, eager, 0.25)
    step = recorded_form(eager, padding=2, parked=page._free[-1])
    got = ops.attend(torch.cat([q_THE, q_THE[:2]]), page.kv, step, 0.25)
    assert torch.equal(got[:3], expected)
    assert got[3:].eq(0).all()


def test_nothing_waits_for_the_device_and_layers_share_what_is_converted() -> None:
    calls: list[dict[str, Any]] = []

    def run(**asked: Any) -> Tensor:
        calls.append(asked)
        return asked["q"]  # type: ignore[no-any-return]

    heads = heads_of(4, 2, 64)
    page = Paged(heads, window=40, dtype=torch.float16, granules=1)
    step, _ = page.step([(page.sequence(projection(heads, 50)), 20, 50), (page.sequence(projection(heads, 9)), 8, 9)])
    attend, q_THE, sinks_H = Fa3Attention(run), torch.zeros(31, 4, 64, dtype=torch.float16), torch.zeros(4)
    with no_reads():
        for _ in range(2):
            assert attend(q_THE, page.kv, step, 0.25, sinks_H=sinks_H).shape == (31, 256)
    first, second = calls
    assert (first["max_seqlen_q"], first["window_size"], first["causal"]) == (30, (39, 0), True)
    assert first["softmax_scale"] == 0.25 and first["sinks"].dtype == torch.bfloat16
    assert first["cache_seqlens"].tolist() == [50, 9] and first["cu_seqlens_q"].tolist() == [0, 30, 31]
    for name in ("page_table", "cache_seqlens", "cu_seqlens_q"):
        assert first[name].dtype == torch.int32 and first[name] is second[name]


def test_softcap_and_other_heads_and_other_kv_are_refused_in_words() -> None:
    heads = heads_of(4, 2, 64)
    page = Paged(heads, dtype=torch.float16, granules=1)
    step, _ = page.step([(page.sequence(projection(heads, 5)), 0, 5)])
    q_THE, attend = torch.zeros(5, 4, 64, dtype=torch.float16), Fa3Attention(flash_attn_with_kvcache)
    with pytest.raises(ValueError, match="no softcap"):
        attend(q_THE, page.kv, step, 0.25, 30.0)
    with pytest.raises(ValueError, match="no heads of 96"):
        attend(q_THE, replace(page.kv, head_dim=96), step, 0.25)
    with pytest.raises(ValueError, match="KV in the activations' type"):
        attend(q_THE.bfloat16(), page.kv, step, 0.25)


def test_memory_whose_tokens_are_not_aligned_is_refused() -> None:
    page = Paged(heads_of(4, 2, 64), dtype=torch.float16, granules=1)
    pages(page.kv)
    with pytest.raises(ValueError, match="not aligned"):
        pages(replace(page.kv, offset_bytes=page.kv.offset_bytes + 8))
    with pytest.raises(ValueError, match="not aligned"):
        pages(replace(page.kv, arena=page.kv.arena[2:]))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake in the package's place, on a card of which the CPU plays the part."""
    monkeypatch.setattr(wheel, "MODULE", "tests.ops.triton.fake_fa3")
    monkeypatch.setattr(wheel, "refuses_card", lambda _: None)


def workspace() -> Workspace:
    return Workspace(max_tokens=64, max_samples=4)


def test_it_is_never_taken_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(_: object) -> str:
        raise AssertionError("nobody named it")

    monkeypatch.setattr(wheel, "refuses_card", asked)
    monkeypatch.setattr(wheel, "attend", asked)
    ops = build_ops(workspace(), registry=gpu_registry(HALF))
    assert ops.explain()["attend"].startswith("triton:") and "fa3" not in ops.explain()["attend"]


@pytest.mark.usefixtures("installed")
def test_named_and_trusted_it_attends() -> None:
    ops = build_ops(workspace(), registry=gpu_registry(HALF), prefer={"attend": "fa3"})
    assert ops.explain()["attend"] == "fa3: preferred by configuration"
    assert ops.explain()["rope_store"].startswith("triton:")
    assert ops.graphs_of(("attend",))
    assert ops.refuses_kv("int8") == "attend as fa3 stores no KV in int8; it knows float16"
    spec = KvGroupSpec(name="local", layers=(0,), kv_heads=2, head_dim=64, dtype="float16", window=32)
    assert ops.refuses_group(spec) is None
    assert ops.refuses_group(replace(spec, head_dim=80)) == (
        "attend as fa3 refuses: local has heads of 80; it knows 64, 128, 192, 256"
    )


@pytest.mark.usefixtures("installed")
def test_kv_of_another_family_is_refused() -> None:
    registry = Registry((*reference_implementations(), *fa3_implementations(HALF)))
    with pytest.raises(NoImplementation, match="rope_store as reference: transposed keys, attend as fa3: token rows"):
        build_ops(workspace(), registry=registry, prefer={"attend": "fa3"})


def refusal(settings: TritonSettings = HALF, device: torch.device = CPU) -> str | None:
    [one] = fa3_implementations(settings)
    return one.refuses(device)


def test_refusals_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "deterministic" in str(refusal(replace(HALF, deterministic=True)))
    assert "torch.float32" in str(refusal(TritonSettings(dtype=torch.float32)))
    assert refusal() == "it runs on NVIDIA GPUs"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert "this GPU has 8.0" in str(refusal(device=torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(wheel, "MODULE", "no_such_module_at_all")
    assert refusal(device=torch.device("cuda")) == "tokenspeed-fa3 is not installed"


def test_another_package_of_the_same_module_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(wheel, "refuses_card", lambda _: None)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "other_fa3.py").write_text("def flash_attn_with_kvcache(q, k_cache, v_cache): ...")
    monkeypatch.setattr(wheel, "MODULE", "other_fa3")
    assert "takes no cache_seqlens" in str(refusal())
    (tmp_path / "broken_fa3.py").write_text("raise ImportError('libcudart.so.13 is missing')")
    monkeypatch.setattr(wheel, "MODULE", "broken_fa3")
    assert "cannot be loaded: ImportError: libcudart.so.13 is missing" in str(refusal())


WRONG: dict[str, Callable[..., Tensor]] = {
    "keys one too few": lambda **asked: flash_attn_with_kvcache(
        **(asked | {"cache_seqlens": (asked["cache_seqlens"] - 1).clamp(min=1)})
    ),
    "no scale": lambda **asked: flash_attn_with_kvcache(**(asked | {"softmax_scale": 1.0})),
    "heads swapped": lambda **asked: flash_attn_with_kvcache(**asked).flip(1),
    "values for keys": lambda **asked: flash_attn_with_kvcache(**(asked | {"k_cache": asked["v_cache"]})),
    "sinks ignored": lambda **asked: flash_attn_with_kvcache(**(asked | {"sinks": None})),
    "nothing": lambda **asked: torch.zeros_like(asked["q"]),
    "NaN": lambda **asked: torch.full_like(asked["q"], torch.nan),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("windowed", [False, True])
def test_the_self_check_trusts_who_is_right(dtype: torch.dtype, windowed: bool) -> None:
    assert disagreement(flash_attn_with_kvcache, CPU, dtype, (64,), windowed=windowed) is None


@pytest.mark.parametrize("name", WRONG)
def test_the_self_check_finds_who_is_wrong(name: str) -> None:
    assert "where 0.01 is allowed" in str(disagreement(WRONG[name], CPU, torch.float16, (64,), windowed=False))


def test_the_self_check_finds_a_window_that_is_off_by_one_and_memory_that_is_seen() -> None:
    def wider(**asked: Any) -> Tensor:
        left, right = asked["window_size"]
        return flash_attn_with_kvcache(**(asked | {"window_size": (left + 1, right)}))

    def touched(**asked: Any) -> Tensor:
        whole = (asked["v_cache"] * 0).nan_to_num(1.0).amax()
        return flash_attn_with_kvcache(**asked) + whole

    for wrong in (wider, touched):
        assert "heads of 64, a window" in str(disagreement(wrong, CPU, torch.float16, (64,), windowed=True))


def test_the_self_check_reports_what_is_raised() -> None:
    def raising(**_: Any) -> Tensor:
        raise RuntimeError("no kernel image is available")

    found = disagreement(raising, CPU, torch.float16, (64,), windowed=False)
    assert found == "its self-check failed with heads of 64: RuntimeError: no kernel image is available"


@pytest.mark.usefixtures("installed")
def test_who_is_wrong_is_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    [fa3] = fa3_implementations(HALF)
    assert fa3.refuses(CPU) is None
    monkeypatch.setattr(wheel, "attend", lambda: WRONG["no scale"])
    with pytest.raises(NoImplementation, match=r"fa3 refuses: it differs from the reference with heads of 64, a mixed"):
        build_ops(workspace(), registry=gpu_registry(HALF), prefer={"attend": "fa3"})
