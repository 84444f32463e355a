"""A GGUF file as a directory of fp32 safetensors that other libraries load: SOURCE.gguf TARGET. Needs transformers and gguf."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Write TARGET; it appears under its name only when it is whole."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    part = target.with_name(target.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures = [type(model).__name__]
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(part)
    model.generation_config.save_pretrained(part)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(part)
    part.rename(target)


if __name__ == "__main__":
    main()
