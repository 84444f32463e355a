from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from typer.testing import CliRunner, Result

from inference_stack.artifacts.resolve import resolve
from inference_stack.cli.main import app
from inference_stack.core.errors import InferenceError
from inference_stack.frontend.gguf_vocab import gguf_tokenizer
from inference_stack.frontend.load import load_frontend
from inference_stack.models.loader import load_model
from tests.frontend.vocabularies import CHATML, byte_level_metadata, sentencepiece_metadata
from tests.models import gguf_maker, tiny

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
TEXT = "hello world, think in the hall <|im_end|> é " * 12


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ISTACK_NODE__THREADS", "1")
    Path("text.txt").write_text(TEXT)


def directory(path: Path, metadata: dict[str, Any], **changes: Any) -> Path:
    """A tiny model in a directory with this vocabulary."""
    vocabulary = metadata["tokenizer.ggml.tokens"]
    tiny.save(tiny.make("llama", **(SIZES | {"vocab_size": len(vocabulary)} | changes)), path)
    gguf_tokenizer(metadata).raw.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML, "eos_token": "<|im_end|>"}))
    (path / "modeling.py").write_text("raise SystemExit")
    return path


def gguf_file(path: Path, metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model in a GGUF file with this vocabulary."""
    plain = gguf_maker._metadata

    def with_vocabulary(writer: gguf.GGUFWriter, config: Any) -> None:
        plain(writer, config)
        for key, value in metadata.items():
            if key.endswith(("eos_token_id", "eot_token_id")):
                writer.kv_data[0].pop(key, None)
            add = {str: writer.add_string, int: writer.add_uint32, list: writer.add_array}[type(value)]
            add(key, value)
        writer.kv_data[0].pop("tokenizer.ggml.eot_token_id", None)

    monkeypatch.setattr(gguf_maker, "_metadata", with_vocabulary)
    model = tiny.make("llama", **SIZES, vocab_size=len(metadata["tokenizer.ggml.tokens"]))
    gguf_maker.write(model, path, gguf_maker.Kind.F16)
    return path


def istack(*arguments: str) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def evaluated(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(istack("evaluate", *arguments, "--text", "text.txt", "--json").stdout)
    return found


@pytest.mark.parametrize("metadata", [byte_level_metadata(), sentencepiece_metadata()], ids=["bytes", "pieces"])
def test_a_gguf_file_becomes_a_directory_that_reads_and_writes_the_same_text(
    metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = gguf_file(Path("tiny.gguf"), metadata, monkeypatch)
    shown = istack("quantize", str(source), "--to", "w4g32").stdout
    assert "14 matrices quantised" in shown
    assert "top-1 agreement" in shown
    before, after = (load_frontend(resolve(path)) for path in ("tiny.gguf", "tiny-w4g32"))
    for text in (TEXT, "", "<|im_start|>user\nhello"):
        assert after.tokenizer.encode(text) == before.tokenizer.encode(text)
    assert after.tokenizer.eos_ids == before.tokenizer.eos_ids
    assert after.tokenizer.named == before.tokenizer.named
    assert load_model(resolve("tiny-w4g32")).quantisation.startswith("w4g32 from compressed-tensors")


def test_calibration_brings_the_result_nearer_to_its_source() -> None:
    source = str(directory(Path("source"), byte_level_metadata()))
    istack("quantize", source, "--to", "w4g32", "--output", "blind", "--no-calibration", "--no-report")
    istack("quantize", source, "--to", "w4g32", "--output", "seeing", "--no-report")
    alike = ("--against", source, "--kernels", "torch", "--weights", "float32", "--kv-dtype", "float32")
    blind, seeing = (evaluated(name, *alike)["quality"]["divergence"] for name in ("blind", "seeing"))
    assert 0 < seeing < blind


def test_files_beside_the_weights_come_along_but_no_code() -> None:
    directory(Path("source"), byte_level_metadata())
    istack("quantize", "source", "--to", "w8", "--no-calibration", "--no-report")
    found = {path.name for path in Path("source-w8").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"} <= found
    assert "modeling.py" not in found
    assert len([name for name in found if name.endswith(".safetensors")]) == 1


def test_a_directory_with_something_in_it_is_not_written_into() -> None:
    directory(Path("source"), byte_level_metadata())
    with pytest.raises(InferenceError, match="source exists and is not empty"):
        istack("quantize", "source", "--output", "source")


def test_what_is_served_is_compared_with_fp32() -> None:
    directory(Path("source"), byte_level_metadata())
    istack("quantize", "source", "--to", "w4g32", "--no-calibration", "--no-report")
    found = evaluated("source-w4g32", "--float32")
    quality = found["quality"]
    assert 0 < quality["divergence"] < 0.02
    assert quality["agreement"] > 0.9
    assert quality["perplexity"] == pytest.approx(quality["reference"], rel=0.02)
    assert "fp32" in found["reference"]
    assert "w4g32" in found["model"]


def test_executed_as_the_reference_is_nothing_differs() -> None:
    directory(Path("source"), byte_level_metadata())
    same = ("--kernels", "torch", "--weights", "float32", "--kv-dtype", "float32")
    assert evaluated("source", "--float32", *same)["quality"]["divergence"] == 0.0


@pytest.mark.parametrize(
    ("limits", "status", "complaint"),
    [
        (("--max-kl", "1"), 0, ""),
        (("--max-kl", "0", "--max-perplexity-increase", "50"), 1, "nats exceeds 0"),
        (("--max-perplexity-increase", "-50"), 1, "more than -50 %"),
    ],
)
def test_limits_decide_the_exit_status(limits: tuple[str, ...], status: int, complaint: str) -> None:
    directory(Path("source"), byte_level_metadata())
    done = istack("evaluate", "source", "--float32", "--text", "text.txt", "--kv-dtype", "int8", *limits)
    assert done.exit_code == status
    assert complaint in done.stderr
    assert "mean KL" in done.stdout


def test_without_a_reference_there_is_perplexity_alone() -> None:
    directory(Path("source"), byte_level_metadata())
    assert evaluated("source").keys() == {"model", "text", "window", "perplexity"}
    assert "mean KL" not in istack("evaluate", "source", "--text", "text.txt").stdout


def test_limits_without_a_reference_are_refused() -> None:
    with pytest.raises(InferenceError, match="something to compare with"):
        istack("evaluate", "nothing", "--max-kl", "1")


def test_models_that_cut_text_otherwise_are_not_compared() -> None:
    directory(Path("one"), byte_level_metadata())
    directory(Path("two"), byte_level_metadata() | {"tokenizer.ggml.merges": []})
    with pytest.raises(InferenceError, match="different tokens"):
        evaluated("one", "--against", "two")


def test_a_text_that_is_not_there_is_named() -> None:
    with pytest.raises(InferenceError, match=r"missing\.txt: No such file"):
        istack("evaluate", "nothing", "--text", "missing.txt")
