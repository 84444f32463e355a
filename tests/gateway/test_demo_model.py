"""The demo model's own vocabulary and template, under a scripted engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inference_stack.artifacts.gguf import GgufFile
from inference_stack.config.tree import ServerConfig
from inference_stack.core.seams import SystemClock
from inference_stack.frontend.load import Frontend, frontend_from_gguf
from inference_stack.gateway.app import create_app
from inference_stack.telemetry.metrics import Metrics
from tests.gateway.house import TINY, House, chat_body, client, events
from tests.gateway.scripted import Script, ScriptedDispatch

pytestmark = pytest.mark.model

TEXT = "नमस्ते दुनिया! 🧑‍🚀 flies — “quoted” text, 数学 and code: def f(x):\n    return x**2\n"


@pytest.fixture(scope="module")
def frontend(demo_model: Path) -> Frontend:
    with GgufFile(demo_model) as container:
        return frontend_from_gguf(container.metadata)


@pytest.fixture
def house(frontend: Frontend) -> House:
    tokenizer, metrics = frontend.tokenizer, Metrics()
    model = replace(TINY, vocab_size=tokenizer.vocab_size, eos_tokens=tokenizer.eos_ids)
    script = Script([[*tokenizer.encode(TEXT, add_special_tokens=False), tokenizer.eos_ids[0]]])
    dispatch = ScriptedDispatch(model, script, metrics)
    app = create_app(dispatch, {model.name: frontend}, ServerConfig(), SystemClock(), metrics)
    return House(app, dispatch, metrics)


@pytest.mark.parametrize("fields", [{}, {"logprobs": True}, {"stop": "🚀"}, {"max_tokens": 11}], ids=str)
async def test_a_stream_concatenates_to_the_whole(house: House, fields: dict[str, Any]) -> None:
    async with client(house) as http:
        whole = (await http.post("/v1/chat/completions", json=chat_body(**fields))).json()["choices"][0]
        body = chat_body(stream=True, **fields)
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            chunks = (await events(response.aiter_lines()))[:-1]
    content = whole["message"]["content"]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == content
    assert TEXT.startswith(content.rstrip("\ufffd"))
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]


async def test_the_models_template_writes_the_prompt(house: House, frontend: Frontend) -> None:
    async with client(house) as http:
        await http.post("/v1/chat/completions", json=chat_body())
    prompt = frontend.tokenizer.decode(house.dispatch.requests[0].continuation.prompt, skip_special_tokens=False)
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
