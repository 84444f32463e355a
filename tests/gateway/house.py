"""A gateway over scripts: a small real tokenizer, a model, the application, and a way to reach it in-process or by socket."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
import uvloop
from starlette.applications import Starlette
from tokenizers import AddedToken, decoders, pre_tokenizers, trainers
from tokenizers import Tokenizer as RawTokenizer
from tokenizers.models import BPE

from inference_stack.config.tree import ServerConfig
from inference_stack.core.fleet import ModelInfo
from inference_stack.core.seams import SystemClock
from inference_stack.frontend.chat import ChatEncoder
from inference_stack.frontend.load import Frontend
from inference_stack.frontend.tokenizer import Tokenizer
from inference_stack.gateway.app import create_app
from inference_stack.telemetry.metrics import Metrics
from tests.gateway.scripted import Script, ScriptedDispatch

MODEL = "tiny"
CONTEXT = 256
TEXTS = (
    "The quick brown fox jumps over the lazy dog, and then it sleeps until noon.",
    "Grüße aus Köln: 你好, 世界! 🙂🙃 Emoji and naïve café.",
    "One two three four five six seven eight nine ten eleven twelve.",
)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE trained on the script's own first words, so that some tokens are parts of characters."""
    raw = RawTokenizer(BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    raw.train_from_iterator([TEXTS[0], TEXTS[2]], trainer)
    raw.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    return Tokenizer(raw, eos_ids=[raw.token_to_id("<|im_end|>")], named={"eos_token": "<|im_end|>"})


TOKENIZER = make_tokenizer()
EOS = TOKENIZER.eos_ids[0]


def answers() -> list[list[int]]:
    """What the scripted model says: each text, then the end token."""
    return [[*TOKENIZER.encode(text, add_special_tokens=False), EOS] for text in TEXTS]


TINY = ModelInfo(
    name=MODEL,
    architecture="llama",
    numerics_id="fp_tiny",
    max_model_len=CONTEXT,
    vocab_size=TOKENIZER.vocab_size,
    eos_tokens=(EOS,),
    kv_groups=(),
    kv_blocks=8,
    max_running=4,
)


@dataclass
class House:
    """One gateway and everything it was given."""

    app: Starlette
    dispatch: ScriptedDispatch
    metrics: Metrics

    @property
    def script(self) -> Script:
        return self.dispatch.script


def make_house(secret: bytes | None = None, **config: Any) -> House:
    """A gateway over a script of the three texts. With the same `secret`, one resumes another's streams."""
    metrics = Metrics()
    dispatch = ScriptedDispatch(TINY, Script(answers()), metrics)
    frontends = {MODEL: Frontend(TOKENIZER, ChatEncoder(TOKENIZER, {"default": TEMPLATE}))}
    log = logging.getLogger("tests.gateway")
    app = create_app(dispatch, frontends, ServerConfig(**config), SystemClock(), metrics, log, secret)
    return House(app, dispatch, metrics)


def client(house: House) -> httpx.AsyncClient:
    """An in-process client."""
    transport = httpx.ASGITransport(app=house.app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://gateway")


@dataclass
class Live:
    """A gateway behind a real socket, served by a thread of its own."""

    house: House
    url: str
    loop: asyncio.AbstractEventLoop

    def call(self, work: Callable[[], None]) -> None:
        """Run `work` on the server's loop."""
        self.loop.call_soon_threadsafe(work)

    def wait(self, event: asyncio.Event) -> None:
        """Block until an event of the server's loop is set."""
        asyncio.run_coroutine_threadsafe(event.wait(), self.loop).result(20)


@contextmanager
def live(secret: bytes | None = None, **config: Any) -> Iterator[Live]:
    """Serve a house with uvicorn on a loopback port."""
    house = make_house(secret, **config)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(house.app, log_config=None, access_log=False, lifespan="off"))
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(server.serve([listener])))
    thread.start()
    try:
        yield Live(house, f"http://127.0.0.1:{listener.getsockname()[1]}", loop)
    finally:
        server.should_exit = True
        thread.join(20)
        loop.close()
        listener.close()


def chat_body(**fields: Any) -> dict[str, Any]:
    """A chat request that the script answers with its first text (seed 0)."""
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "seed": 0, **fields}


def text_body(**fields: Any) -> dict[str, Any]:
    """A completion request that the script answers with its first text (seed 0)."""
    return {"model": MODEL, "prompt": "One two", "seed": 0, "max_tokens": 100, **fields}


async def events(source: AsyncIterator[str]) -> list[Any]:
    """The data of server-sent events, parsed; the end mark as the string it is."""
    found = []
    async for line in source:
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            found.append(data if data == "[DONE]" else json.loads(data))
    return found
