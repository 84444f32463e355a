"""How fast weights come to a device, leave it and come back: files in the page cache, sleep, wake, and whether all of it is right.

    python -m bench.gpu.weights [--device cuda] [--shape llama-3.1-8b] [--layers 32] [--tiny] [--out FILE]

Ceilings are measured in the same run: reading the same files in parallel into memory that stays, and copying from page-locked
memory. Loading can be no faster than the slower of the two.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from bench.gpu.place import Place, open_place
from bench.gpu.report import Report
from safetensors.torch import load_file, save_file
from torch import Tensor

from inference_stack.artifacts.files import ModelFiles
from inference_stack.artifacts.ranges import RangeReader
from inference_stack.artifacts.resolve import resolve
from inference_stack.engine.sleeping import Sleeper, sleeper_for
from inference_stack.models.api import LoadedModel
from inference_stack.models.loader import load_model
from inference_stack.models.parameters import parameters
from inference_stack.models.placing import BUFFER_BYTES, READERS

SHAPES = Path(__file__).parent / "shapes"
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512, "head_dim": 16}
LOADS = 3


def write_checkpoint(raw: dict[str, Any], folder: Path, place: Place) -> ModelFiles:
    """A checkpoint of a dense Llama-like shape in bf16, a file for each layer, drawn on the device."""
    folder.mkdir(parents=True, exist_ok=True)
    hidden, inner = raw["hidden_size"], raw["intermediate_size"]
    head = raw.get("head_dim", hidden // raw["num_attention_heads"])
    q, kv = raw["num_attention_heads"] * head, raw["num_key_value_heads"] * head
    matrices = {
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    norms = ("input_layernorm", "post_attention_layernorm")
    parts: list[dict[str, tuple[int, ...]]] = [
        {f"model.layers.{layer}.{name}.weight": shape for name, shape in matrices.items()}
        | {f"model.layers.{layer}.{name}.weight": (hidden,) for name in norms}
        for layer in range(raw["num_hidden_layers"])
    ]
    tables = {"model.embed_tokens.weight": (raw["vocab_size"], hidden), "lm_head.weight": (raw["vocab_size"], hidden)}
    _write([*parts, {**tables, "model.norm.weight": (hidden,)}], folder, place)
    (folder / "config.json").write_text(json.dumps(raw | {"tie_word_embeddings": False}))
    return resolve(str(folder), folder)


def _write(parts: list[dict[str, tuple[int, ...]]], folder: Path, place: Place) -> None:
    index: dict[str, str] = {}
    for number, shapes in enumerate(parts):
        tensors = {
            name: (place.random(*shape, seed=number, dtype=torch.bfloat16) * 0.02).cpu()
            for name, shape in shapes.items()
        }
        name = f"model-{number:05}.safetensors"
        save_file(tensors, folder / name)
        index |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def seconds(place: Place, work: Callable[[], Any]) -> tuple[float, Any]:
    """What it takes until the device has done it too, and what it gave."""
    place.wait()
    began = time.perf_counter()
    made = work()
    place.wait()
    return time.perf_counter() - began, made


def read_rate(files: ModelFiles) -> float:
    """Bytes a second that as many threads as the loader has read into buffers that are there already."""
    reader = RangeReader()
    buffers = [torch.zeros(BUFFER_BYTES, dtype=torch.uint8) for _ in range(READERS)]
    ranges = [
        (path, offset, min(BUFFER_BYTES, path.stat().st_size - offset))
        for path in files.weights
        for offset in range(0, path.stat().st_size, BUFFER_BYTES)
    ]

    def read(turn: int) -> None:
        for path, offset, nbytes in ranges[turn::READERS]:
            reader.read(path, offset, buffers[turn][:nbytes].numpy().data)

    began = time.perf_counter()
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(read, range(READERS)))
    rate = files.total_bytes / (time.perf_counter() - began)
    reader.close()
    return rate


def copy_rate(place: Place) -> float:
    """Bytes a second from page-locked memory to the device."""
    nbytes = 1 << 20 if place.tiny else 1 << 30
    host = torch.zeros(nbytes, dtype=torch.uint8, pin_memory=place.on_card)
    out = torch.empty_like(host, device=place.device)
    seconds(place, lambda: out.copy_(host, non_blocking=True))
    return nbytes / min(seconds(place, lambda: out.copy_(host, non_blocking=True))[0] for _ in range(5))


def loads(place: Place, files: ModelFiles, report: Report) -> LoadedModel:
    """Load several times; the last model."""
    ceilings = {"read from page cache": read_rate(files), "copy to the device": copy_rate(place)}
    loaded: LoadedModel | None = None
    times: list[float] = []
    for _ in range(LOADS):
        loaded = None  # or there would be two of them
        if place.on_card:
            torch.cuda.reset_peak_memory_stats(place.device)
        took, loaded = seconds(place, lambda: load_model(files, device=place.device))
        times.append(took)
    assert loaded is not None
    peak = torch.cuda.max_memory_reserved(place.device) if place.on_card else 0
    rate = files.total_bytes / min(times)
    result = {"bytes": files.total_bytes, "seconds": times, "rate": rate, "ceilings": ceilings, "peak_bytes": peak}
    report.put("load", result | {"of_ceiling": rate / min(ceilings.values()), "wrong": differing(loaded, files)})
    for name, value in ceilings.items():
        report.row(name, value / 1e9, "GB/s", "")
    report.row("load", rate / 1e9, "GB/s", f"{rate / min(ceilings.values()):.0%} of the lower one")
    report.row("load: most memory taken", peak / loaded.weight_bytes, "of the weights", "")
    report.row("load: wrong matrices", report.data["load"]["wrong"], "", "")
    return loaded


def differing(loaded: LoadedModel, files: ModelFiles) -> int:
    """Matrices on the device that are not what the safetensors library reads; every one is compared."""
    wanted: dict[str, Tensor] = {}
    for path in files.weights:
        wanted |= load_file(path)
    model: Any = loaded.model
    pairs = [(model.table, ["model.embed_tokens"]), (model.head, ["lm_head"])]
    for number, block in enumerate(model.blocks):
        prefix = f"model.layers.{number}."
        pairs += [
            (block.attention.qkv, [f"{prefix}self_attn.{part}_proj" for part in "qkv"]),
            (block.attention.out, [f"{prefix}self_attn.o_proj"]),
            (block.mlp.gate_up, [f"{prefix}mlp.gate_proj", f"{prefix}mlp.up_proj"]),
            (block.mlp.down, [f"{prefix}mlp.down_proj"]),
        ]
    return sum(
        not torch.equal(linear.weight, torch.cat([wanted[f"{name}.weight"] for name in names]).to(linear.weight.device))
        for linear, names in pairs
    )


def sleeps(place: Place, loaded: LoadedModel, files: ModelFiles, report: Report) -> bool:
    """Sleep and wake twice, with a recorded product that has to stay valid; whether everything came back."""
    took, sleeper = seconds(place, lambda: sleeper_for(loaded, place.device))
    times: dict[str, float] = {"move": took}
    before, places = _sums(loaded), [one.data_ptr() for one in parameters(loaded)]
    replay, expected = _recorded(loaded, place)
    for turn in ("first", "second"):
        times |= _once(turn, place, sleeper)
    same = _sums(loaded) == before and [one.data_ptr() for one in parameters(loaded)] == places
    same = same and not differing(loaded, files)
    valid = bool(torch.equal(replay(), expected))
    report.put("sleep", {"bytes": sleeper.nbytes, "seconds": times, "same": same, "graph_valid": valid})
    for name, value in times.items():
        report.row(name, value, "s", f"{sleeper.nbytes / value / 1e9:.1f} GB/s")
    report.row("weights are the same, at the same place", same, "", "")
    report.row("a recorded product is still valid", valid, "", "")
    return same and valid


def _once(turn: str, place: Place, sleeper: Sleeper) -> dict[str, float]:
    free = place.free()
    slept, freed = seconds(place, sleeper.sleep)
    given = place.free() - free
    woke, _ = seconds(place, sleeper.wake)
    if place.on_card and given < 0.9 * freed:
        raise RuntimeError(f"sleep told of {freed} bytes, but {given} became free")
    return {f"{turn} sleep": slept, f"{turn} wake": woke}


def _sums(loaded: LoadedModel) -> list[int]:
    """Of every parameter's bytes; what has no whole number of words is compared with the files alone."""
    flat = [one.contiguous().view(-1).view(torch.uint8) for one in parameters(loaded)]
    return [int(one.view(torch.int32).sum(dtype=torch.int64)) for one in flat if len(one) % 4 == 0]


def _recorded(loaded: LoadedModel, place: Place) -> tuple[Callable[[], Tensor], Tensor]:
    """A product with one weight as a CUDA graph, and what it gives now."""
    weight = loaded.linears[1].weight
    assert isinstance(weight, Tensor)
    x = place.random(16, weight.shape[1], seed=1, dtype=weight.dtype)
    torch.mm(x, weight.t())
    place.wait()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = torch.mm(x, weight.t())

    def replay() -> Tensor:
        graph.replay()
        place.wait()
        return made.clone()

    return replay, replay()


def weights(place: Place, report: Report, shape: str = "llama-3.1-8b", layers: int = 0) -> bool:
    """Measure all of it; whether it was right."""
    raw = json.loads((SHAPES / f"{shape}.json").read_text())
    raw |= {"num_hidden_layers": layers} if layers else {}
    raw |= TINY if place.tiny else {}
    with tempfile.TemporaryDirectory() as folder:
        files = write_checkpoint(raw, Path(folder) / "model", place)
        loaded = loads(place, files, report)
        right = not report.data["load"]["wrong"]
        if place.on_card:
            right = sleeps(place, loaded, files, report) and right
        else:
            report.skip("sleep", "weights in main memory do not sleep")
    return right


def main(arguments: list[str] | None = None) -> int:
    """The command; 0 when everything was right."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.weights", description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--shape", default="llama-3.1-8b", help="a file of bench/gpu/shapes, of a dense model without biases"
    )
    parser.add_argument("--layers", type=int, default=0, help="fewer layers than the shape has")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes; what is measured then means nothing")
    parser.add_argument("--out", type=Path, help="JSON file")
    given = list(sys.argv[1:] if arguments is None else arguments)
    asked = parser.parse_args(given)
    place = open_place(asked.device, asked.tiny)
    report = Report("weights", place, given, asked.out)
    right = weights(place, report, asked.shape, asked.layers)
    report.close("what", "value", "unit", "remark")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
