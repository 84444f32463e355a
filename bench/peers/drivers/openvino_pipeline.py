"""OpenVINO GenAI's continuous batching, measured at its own Python API: MODEL THREADS [PROPERTY=VALUE …].

One JSON line in: `{"prompts": [[id, …], …], "max_tokens": [n, …]}`. One out: per prompt the arrival times in seconds since the
batch was handed over, and the tokens that arrived. The first line out is written when the model is loaded.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import openvino
import openvino_genai


def pipeline(model: str, threads: int, properties: list[str]) -> Any:
    """The pipeline with a prefix cache, splitting long prompts so that they share steps with decoding requests. `properties` of the
    device, where its defaults are not wanted."""
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 1
    scheduler.max_num_seqs = 64
    scheduler.max_num_batched_tokens = 256
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = True
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    settings |= dict(one.split("=", 1) for one in properties)
    return openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU", settings, {})


def generation(max_tokens: int) -> Any:
    """Greedy, and exactly so many tokens."""
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = max_tokens
    config.ignore_eos = True
    config.do_sample = False
    config.apply_chat_template = False
    return config


def answer(pipe: Any, first: int, prompts: list[list[int]], lengths: list[int]) -> list[dict[str, Any]]:
    """Run a batch to its end; `first` is the first request number, never used before."""
    replies: list[dict[str, Any]] = [{"events": [], "tokens": 0} for _ in prompts]
    begin = time.perf_counter()
    handles = [
        pipe.add_request(first + index, openvino.Tensor(np.array([ids], dtype=np.int64)), generation(length))
        for index, (ids, length) in enumerate(zip(prompts, lengths, strict=True))
    ]
    while pipe.has_non_finished_requests():
        pipe.step()
        now = time.perf_counter() - begin
        for handle, reply in zip(handles, replies, strict=True):
            while handle.can_read():
                reply["events"].append(now)
                reply["tokens"] += sum(len(part.generated_ids) for part in handle.read().values())
    return replies


def main() -> None:
    """Answer batches until standard input ends."""
    pipe = pipeline(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
    print(json.dumps({"ready": True}), flush=True)
    count = 0
    for line in sys.stdin:
        batch = json.loads(line)
        replies = answer(pipe, count, batch["prompts"], batch["max_tokens"])
        count += len(replies)
        print(json.dumps(replies), flush=True)


if __name__ == "__main__":
    main()
