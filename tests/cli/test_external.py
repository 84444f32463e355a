"""What a gateway reads before it dials external servers: models' files, and the key."""

import json
from pathlib import Path
from typing import Any

import pytest

from inference_stack.artifacts.files import ModelFiles
from inference_stack.cli.external import Externals, local_model
from inference_stack.config.tree import Config, GatewayConfig, ModelEntry
from inference_stack.core.errors import InferenceError
from inference_stack.core.seams import LinkClosed, SystemClock
from tests.gateway.house import TOKENIZER

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "vocab_size": 500,
    "eos_token_id": 2,
}


def model(folder: Path, config: dict[str, Any]) -> ModelFiles:
    """A model's small files."""
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(TOKENIZER.raw.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return ModelFiles(kind="safetensors", name="m", root=folder, weights=())


def test_a_model_of_ours_is_known_by_its_configuration(tmp_path: Path) -> None:
    found = local_model("m", model(tmp_path, LLAMA))
    assert (found.architecture, found.vocab_size, found.max_model_len, found.eos_tokens) == ("llama", 500, 64, (2,))


def test_a_model_that_no_node_of_ours_runs_is_known_by_its_tokenizer(tmp_path: Path) -> None:
    found = local_model("m", model(tmp_path, {"architectures": ["Novel"], "model_type": "novel", "vocab_size": 5000}))
    assert (found.architecture, found.vocab_size, found.max_model_len) == ("novel", 5000, 0)
    assert found.eos_tokens == (TOKENIZER.eos_ids[0],)


def externals(tmp_path: Path, key: Path) -> Externals:
    config = Config(models=(ModelEntry(name="m"),), gateway=GatewayConfig(external_key=str(key)))
    return Externals(config, [model(tmp_path, LLAMA)])


@pytest.mark.parametrize("content", [None, b"", b"two\nlines", b"\xff"])
def test_a_key_that_cannot_be_sent_is_refused_at_start(tmp_path: Path, content: bytes | None) -> None:
    key = tmp_path / "key"
    if content is not None:
        key.write_bytes(content)
    with pytest.raises(InferenceError) as caught:
        externals(tmp_path, key)
    assert caught.value.info.param == "gateway.external_key"


async def test_a_server_that_is_not_there_is_no_link(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret\n")
    with pytest.raises(LinkClosed):
        await externals(tmp_path, key).dial("openai:http://127.0.0.1:9", SystemClock())
