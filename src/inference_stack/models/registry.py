"""Which class runs which architecture.

Names from files are normalised by `config` and `gguf_config`, which also refuse the unknown ones; here is the last
step.
"""

from __future__ import annotations

from collections.abc import Callable

from inference_stack.models.api import Model
from inference_stack.models.config import HF_ARCHITECTURES, ModelConfig
from inference_stack.models.gemma3 import Gemma3
from inference_stack.models.gguf_config import GGUF_ARCHITECTURES
from inference_stack.models.gpt_oss import GptOss
from inference_stack.models.llama import Llama
from inference_stack.models.mixtral import Mixtral
from inference_stack.models.qwen2 import Qwen2
from inference_stack.models.qwen3 import Qwen3
from inference_stack.models.qwen3_moe import Qwen3Moe
from inference_stack.models.weights import Weights

ARCHITECTURES: dict[str, Callable[[ModelConfig, Weights, int], Model]] = {
    "llama": Llama,
    "mistral": Llama,
    "qwen2": Qwen2,
    "qwen3": Qwen3,
    "gemma3": Gemma3,
    "mixtral": Mixtral,
    "qwen3_moe": Qwen3Moe,
    "gpt_oss": GptOss,
}


def supported() -> dict[str, tuple[str, ...]]:
    """What files may name: Hugging Face `architectures`, and GGUF `general.architecture`."""
    return {"huggingface": tuple(HF_ARCHITECTURES), "gguf": tuple(GGUF_ARCHITECTURES)}
