"""The servers that are compared: for each its environment, the form of the model it reads, how it starts, its family of targets.

A table. `ours` is in it like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.peers import servers, weights
from bench.peers.servers import Server, Site


@dataclass(frozen=True)
class Contender:
    """One server. `family` names its row of targets; ours has none."""

    name: str
    title: str
    family: str
    environment: str
    form: str
    start: Callable[[Site, Path], Server]

    @property
    def environments(self) -> tuple[str, ...]:
        """Everything that has to be installed before it can start."""
        own = (self.environment,) if self.environment else ()
        return tuple(dict.fromkeys((*own, *weights.NEEDS[self.form])))


OURS = Contender("ours", "Inference Stack", "", "", "shipped", servers.ours)

_ALL = (
    Contender(
        "llama-q4_1", "llama.cpp server, file as shipped", "llama.cpp Q4_1", "llamacpp", "shipped", servers.llama_wheel
    ),
    Contender(
        "llama-q4_0", "llama.cpp server, requantised to Q4_0", "llama.cpp Q4_0", "llamacpp", "q4_0", servers.llama_wheel
    ),
    Contender("openvino-gguf", "OpenVINO GenAI, file as shipped", "OpenVINO", "openvino", "shipped", servers.openvino),
    Contender(
        "openvino-f32",
        "OpenVINO GenAI, fp32 arithmetic, fp16 KV",
        "OpenVINO",
        "openvino",
        "shipped",
        servers.openvino_f32,
    ),
    Contender("openvino-int8", "OpenVINO GenAI, int8", "OpenVINO", "openvino", "openvino-int8", servers.openvino),
    Contender("vllm", "vLLM CPU, fp32", "fp32", "vllm", "fp32", servers.vllm),
    Contender("transformers", "transformers serve, fp32", "fp32", "transformers", "fp32", servers.transformers),
    Contender(
        "llama-native-q4_1",
        "llama.cpp compiled here, file as shipped",
        "llama.cpp Q4_1",
        "llamacpp-native",
        "shipped",
        servers.llama_native,
    ),
    Contender(
        "llama-native-q4_0",
        "llama.cpp compiled here, Q4_0",
        "llama.cpp Q4_0",
        "llamacpp-native",
        "q4_0",
        servers.llama_native,
    ),
)

PEERS = {peer.name: peer for peer in _ALL}

DEFAULT = tuple(name for name in PEERS if "native" not in name and name != "openvino-f32")
"""Native builds compile for ten minutes or more, and a peer held to our precision is not at its defaults: they take part when
they are named."""
