"""Frontends out of directories and GGUF files."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as RawTokenizer
from tokenizers.processors import TemplateProcessing

from inference_stack.core.errors import InferenceError
from inference_stack.frontend.chat import ChatOptions
from inference_stack.frontend.load import Frontend, frontend_from_directory, frontend_from_gguf
from inference_stack.frontend.tokenizer import Tokenizer
from tests.frontend.vocabularies import CHATML, byte_level_metadata

TALK = [{"role": "user", "content": "hello"}]


@pytest.fixture
def root(byte_level: Tokenizer, tmp_path: Path) -> Path:
    """A model directory without weights."""
    raw = RawTokenizer.from_str(byte_level.raw.to_str())
    bos = byte_level.token_id("<|im_start|>")
    raw.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", bos)])
    raw.save(str(tmp_path / "tokenizer.json"))
    settings = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "chat_template": CHATML}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def change(root: Path, **settings: Any) -> Frontend:
    path = root / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return frontend_from_directory(root)


def test_a_directory_and_a_gguf_file_of_one_model_agree(root: Path) -> None:
    one, other = frontend_from_directory(root), frontend_from_gguf(byte_level_metadata())
    assert one.chat.encode(TALK, ChatOptions(), now=0.0) == other.chat.encode(TALK, ChatOptions(), now=0.0)
    assert (one.tokenizer.bos_id, one.tokenizer.eos_ids) == (other.tokenizer.bos_id, other.tokenizer.eos_ids)


def test_the_post_processors_tokens_go_around_a_text(root: Path) -> None:
    tokenizer = frontend_from_directory(root).tokenizer
    assert tokenizer.encode("h")[0] == tokenizer.bos_id


@pytest.mark.parametrize("wanted", [True, False])
def test_an_explicit_flag_decides_about_the_beginning_token(root: Path, wanted: bool) -> None:
    tokenizer = change(root, add_bos_token=wanted).tokenizer
    assert (tokenizer.encode("h")[0] == tokenizer.bos_id) is wanted


def test_an_explicit_flag_adds_the_end_token(root: Path) -> None:
    tokenizer = change(root, add_eos_token=True).tokenizer
    assert tokenizer.encode("h")[-1] == tokenizer.eos_ids[0]


def test_the_generation_settings_add_end_tokens(root: Path) -> None:
    (root / "generation_config.json").write_text('{"eos_token_id": [3, 4], "temperature": 0.5}')
    frontend = frontend_from_directory(root)
    assert frontend.tokenizer.eos_ids[1:] == (3, 4)
    assert frontend.generation["temperature"] == 0.5


def test_a_template_file_goes_before_the_settings(root: Path) -> None:
    (root / "chat_template.jinja").write_text("from a file")
    assert frontend_from_directory(root).chat.render(TALK, ChatOptions(), now=0.0) == "from a file"


def test_templates_may_come_as_a_list(root: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    chat = change(root, chat_template=named).chat
    assert chat.render(TALK, ChatOptions(tools=[{"type": "function"}]), now=0.0) == "tools"


def test_further_template_files_are_found(root: Path) -> None:
    (root / "additional_chat_templates").mkdir()
    (root / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    chat = frontend_from_directory(root).chat
    assert chat.render(TALK, ChatOptions(tools=[{"type": "function"}]), now=0.0) == "tools"


def test_tokens_that_only_the_settings_name_are_added(root: Path) -> None:
    size = frontend_from_directory(root).tokenizer.vocab_size
    tokenizer = change(root, added_tokens_decoder={str(size): {"content": "<|new|>", "special": True}}).tokenizer
    assert tokenizer.encode("<|new|>")[-1] == size
    assert size in tokenizer.special_ids


def test_added_tokens_that_do_not_fit_are_refused(root: Path) -> None:
    with pytest.raises(InferenceError, match="does not fit"):
        change(root, added_tokens_decoder={"99999": {"content": "<|new|>", "special": True}})


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match=r"tokenizer\.json") as refused:
        frontend_from_directory(tmp_path)
    assert refused.value.info.code == "unsupported_model"


def test_a_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InferenceError, match="is not a tokenizer"):
        frontend_from_directory(tmp_path)


def test_neither_torch_nor_transformers_is_imported() -> None:
    code = (
        "import sys, inference_stack.frontend.load, inference_stack.frontend.completion; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_threads_share_a_frontend(root: Path) -> None:
    frontend = frontend_from_directory(root)
    talks = [[{"role": "user", "content": f"hello <|im_end|> {number}"}] for number in range(8)]
    expected = [frontend.chat.encode(talk, ChatOptions(), now=0.0) for talk in talks]
    found: dict[int, list[list[int]]] = {}

    def work(index: int) -> None:
        found[index] = [frontend.chat.encode(talks[index], ChatOptions(), now=0.0) for _ in range(50)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(talks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[index] == [expected[index]] * 50 for index in range(len(talks)))


@pytest.mark.model
def test_the_demo_models_chat(smollm2: Frontend) -> None:
    ids = smollm2.chat.encode(TALK, ChatOptions(), now=0.0)
    assert smollm2.tokenizer.decode(ids, skip_special_tokens=False).endswith(
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids[:2] == [1, 9690]
    assert smollm2.tokenizer.eos_ids == (2,)
