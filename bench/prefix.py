"""Time to first token of a prompt whose first 1,000 tokens are cached, against prefilling the uncached tail alone.

    python bench/prefix.py [--url http://127.0.0.1:8000] [--output bench/results]

Needs a running server. Prints and records medians and their ratio.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx

PREFIX = 1000
TAIL = 3


def first_token(http: httpx.Client, model: str, prompt: list[int]) -> tuple[float, int]:
    """Seconds until the first token, and how many prompt tokens came from the cache."""
    began = time.perf_counter()
    response = http.post("/v1/completions", json={"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0})
    seconds = time.perf_counter() - began
    response.raise_for_status()
    return seconds, response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]


def main() -> None:
    """Measure rounds of cold prefix, cached prefix and tail alone, interleaved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    dice = random.Random(0)
    cold, cached, tail, hits = [], [], [], []
    with httpx.Client(base_url=options.url, timeout=300) as http:
        model = http.get("/v1/models").json()["data"][0]["id"]
        for _ in range(options.rounds):
            prefix = [dice.randrange(100, 20_000) for _ in range(PREFIX)]
            cold.append(first_token(http, model, prefix + [5] * TAIL)[0])
            seconds, hit = first_token(http, model, prefix + [6] * TAIL)
            cached.append(seconds)
            hits.append(hit)
            rest = [dice.randrange(100, 20_000) for _ in range(PREFIX + TAIL - hit)]
            tail.append(first_token(http, model, rest)[0])
    result = {
        "what": f"TTFT, {PREFIX}-token prefix and {TAIL} more tokens",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {platform.python_version()}",
        "rounds": options.rounds,
        "cold_seconds": statistics.median(cold),
        "cached_seconds": statistics.median(cached),
        "tail_alone_seconds": statistics.median(tail),
        "cached_tokens": min(hits),
        "cached_to_tail": statistics.median(cached) / statistics.median(tail),
    }
    print(json.dumps(result, indent=2))
    if options.output:
        (options.output / "prefix.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
