"""What one model does on the place: decoding, prompts, both together, and requests that come as people send them.

Each is measured on an `EngineCore`, scheduler and all, and stands beside the least time that exactly its steps need.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import Any

from bench.gpu.house import House, request, words
from bench.gpu.limits import Limits
from bench.gpu.load import Load, online
from bench.gpu.place import Place
from bench.gpu.report import Budget, Report
from bench.gpu.watched import Watched, idle_share, kernels_of, timed_steps, watch

BATCHES = (1, 32, 128, 8, 256)
PROMPTS = (2048, 512, 8192, 32768)
CONTEXT = 1024
STEPS = 96
PROFILED = (1, 32, 128)
FILTERED = (1, 32)
"""Batches that are decoded with `ORDINARY` sampling too."""
PLAIN: dict[str, Any] = {"temperature": 1.0}
ORDINARY: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9, "top_k": 40}
"""What people ask for: the sampler's filters run."""
PARTS = 4
"""Into which measured decode steps are divided: their spread says what is noise."""


class Serving:
    """One open engine. Every measurement leaves it idle."""

    def __init__(self, place: Place, house: House, limits: Limits, budget: Budget, report: Report) -> None:
        self._place, self._house, self._limits = place, house, limits
        self._budget, self._report = budget, report
        self._watched: Watched = watch(house)
        self._vocabulary = house.ready.models[0].vocab_size
        self._salt = 0
        self.found: dict[str, Any] = {}

    def all(self) -> None:
        """Everything that there is time for, what is most wanted first."""
        tiny = self._place.tiny
        batches, filtered, prompts = ((1, 3), (1, 3), (40,)) if tiny else (BATCHES, FILTERED, PROMPTS)
        decodes = [(f"decode, batch {batch}", batch, PLAIN) for batch in batches]
        decodes[3:3] = [(f"decode, batch {batch}, {named(ORDINARY)}", batch, ORDINARY) for batch in filtered]
        rest: list[tuple[str, float, Callable[[], dict[str, Any]]]] = []
        for what, batch, sampling in decodes:
            seconds = 3 + batch * self._limits.prompt(CONTEXT, CONTEXT) * 2 + 300 / self._decode_rate(batch) * batch
            rest.append((what, seconds, partial(self.decode, batch, sampling)))
        longest = self._house.ready.models[0].max_model_len
        for tokens in [min(tokens, longest - 2) for tokens in prompts if tokens <= longest]:
            seconds = 2 + 10 * self._limits.prompt(tokens, tokens)
            rest.append((f"prompt of {tokens}", seconds, partial(self.prompt, tokens)))
        rest.insert(4 + len(filtered), ("mixed", 15.0, self.mixed))
        rest += [
            ("all at once", 40.0, self.offline),
            ("as people send", 40.0, self.online),
            ("sleep", 20.0, self.sleep),
        ]
        for what, seconds, work in rest:
            if self._budget.fits(self._report, what, 0.0 if tiny else seconds):
                self._one(what, work)

    def _decode_rate(self, batch: int) -> float:
        return self._limits.decode_rate(batch, CONTEXT) * 0.5

    def _one(self, what: str, work: Callable[[], dict[str, Any]]) -> None:
        """One measurement; what it raises is kept in place of a result, and the next one is tried."""
        began = time.monotonic()
        try:
            result = work()
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"[:600]}
        finally:
            self._house.drain()
        self.found[what] = result | {"took": time.monotonic() - began}
        self._report.put("measured", self.found)
        shown = result.get("tokens_per_s", result.get("error", result.get("wake_seconds", "")))
        self._report.row(what, shown, result.get("limit", ""), result.get("ratio", ""), result.get("note", ""))

    def _prompt_of(self, tokens: int) -> list[int]:
        """Never the same twice: nothing may come from the prefix cache."""
        self._salt += 1
        return words(tokens, self._vocabulary, self._salt)

    def _busy(self, batch: int, context: int, sampling: dict[str, Any] = PLAIN) -> None:
        """So many requests that decode, for longer than anybody measures."""
        longest = self._house.ready.models[0].max_model_len
        for number in range(batch):
            prompt = self._prompt_of(context)
            params = {"max_tokens": longest - context - 1, **sampling}
            self._house.add(request(self._house, prompt, f"d{number}", seed=number, **params))
        while any(not answer.tokens for answer in self._house.answers.values()):
            self._house.step()
            if failed := [answer.error for answer in self._house.answers.values() if answer.error]:
                raise RuntimeError(f"a request failed: {failed[0]}")
        for _ in range(8):
            self._house.step()

    def decode(self, batch: int, sampling: dict[str, Any]) -> dict[str, Any]:
        """Decode steps of a full batch; contexts are around `CONTEXT` in the middle."""
        tiny = self._place.tiny
        steps, context = (PARTS, 24) if tiny else (STEPS, CONTEXT - STEPS // 2)
        self._busy(batch, context, sampling)
        parts = timed_steps(self._house, self._watched, self._limits, steps // PARTS, PARTS)
        seconds, floor = sum(part.seconds for part in parts), sum(part.floor for part in parts)
        tokens = sum(part.tokens for part in parts)
        rates = sorted(part.tokens / part.seconds for part in parts)
        found: dict[str, Any] = {
            "tokens_per_s": tokens / seconds, "limit": tokens / floor, "ratio": floor / seconds,
            "step_ms": 1000 * seconds / steps, "spread": (rates[-1] - rates[0]) / median(rates), "batch": batch,
            "sampling": sampling, "idle": (idle := idle_share(parts)), "note": f"idle {idle:.1%}",
        }  # fmt: skip
        return found | (self._profile() if batch in PROFILED else {})

    def _profile(self) -> dict[str, Any]:
        """The kernels of such steps. A profiler that fails takes no measurement with it."""
        try:
            kernels = kernels_of(self._house, self._place, 16)
        except Exception as error:
            return {"profile": f"none: {type(error).__name__}: {error}"[:200]}
        if kernels is None:
            return {}
        return {"kernels": asdict(kernels)}

    def prompt(self, tokens: int) -> dict[str, Any]:
        """Prompts alone, one after the other: from arrival to the first token. The first one does not count."""
        seconds, floors = [], []
        for number in range(2 if self._place.tiny else 4):
            since = len(self._watched.steps)
            began = time.perf_counter()
            (answer,) = self._house.run([request(self._house, self._prompt_of(tokens), f"p{number}", max_tokens=1)])
            seconds.append(time.perf_counter() - began)
            floors.append(self._watched.floor(self._limits, since))
            if answer.error is not None:
                raise RuntimeError(f"the request failed: {answer.error}")
        middle, floor = median(seconds[1:]), median(floors[1:])
        return {
            "tokens_per_s": tokens / middle, "limit": tokens / floor, "ratio": floor / middle, "ttft_ms": 1000 * middle,
            "spread": (max(seconds[1:]) - min(seconds[1:])) / middle, "first_ms": 1000 * seconds[0],
        }  # fmt: skip

    def mixed(self) -> dict[str, Any]:
        """Decoding streams, and one prompt after the other beside them."""
        batch, prompts, length = (2, 2, 40) if self._place.tiny else (32, 6, 2048)
        self._busy(batch, 24 if self._place.tiny else 512)
        streams = [(answer, len(answer.times)) for answer in self._house.answers.values()]
        since, began = len(self._watched.steps), time.perf_counter()
        for number in range(prompts):
            arrived = self._house.add(request(self._house, self._prompt_of(length), f"m{number}", max_tokens=1))
            while arrived.finish is None:
                self._house.step()
        seconds = time.perf_counter() - began
        floor, made = self._watched.floor(self._limits, since), sum(len(one.times) - at for one, at in streams)
        gaps = [b - a for one, at in streams for a, b in zip(one.times[at:], one.times[at + 1 :], strict=False)]
        tokens = made + prompts * length
        return {
            "tokens_per_s": tokens / seconds, "limit": tokens / floor, "ratio": floor / seconds, "decoded": made,
            "longest_gap_ms": 1000 * max(gaps, default=0.0), "note": f"{batch} streams beside prompts of {length}",
        }  # fmt: skip

    def offline(self) -> dict[str, Any]:
        """Many requests at once: how much comes out when nobody waits."""
        return self._load(Load(requests=6 if self._place.tiny else 512, rate=float("inf")))

    def online(self) -> dict[str, Any]:
        """Arrivals at random, two thirds as many a second as were answered when all came at once."""
        before = self.found.get("all at once", {}).get("requests_per_s")
        rate = 0.66 * before if before else 8.0
        return self._load(Load(requests=6 if self._place.tiny else int(min(rate * 20, 512)), rate=rate))

    def _load(self, load: Load) -> dict[str, Any]:
        since = len(self._watched.steps)
        load = load.shrunk() if self._place.tiny else load
        found = online(self._house, load, self._vocabulary)
        floor = self._watched.floor(self._limits, since)
        seconds = float(found["seconds"])
        found |= {"least_seconds": floor, "ratio": floor / seconds, "limit": float(found["tokens"]) / floor}
        return found | {"note": f"TTFT p50 {found['ttft_ms_p50']:.0f} ms, ITL p99 {found['itl_ms_p99']:.1f} ms"}

    def sleep(self) -> dict[str, Any]:
        """Weights off the device and back, with the same answer before and after."""
        (instance,) = self._house.core.instances
        if instance.sleeper is None:
            return {"note": "this model was not loaded so that it could sleep"}
        asked = words(30, self._vocabulary, 424242)
        (before,) = self._house.run([request(self._house, asked, "s0", max_tokens=8)])
        found: dict[str, Any] = {}
        for turn in ("first", "next"):
            began = time.perf_counter()
            found[f"{turn}_sleep_seconds"], freed = 0.0, instance.sleep()
            found[f"{turn}_sleep_seconds"] = time.perf_counter() - began
            began = time.perf_counter()
            instance.wake()
            self._place.wait()
            found["wake_seconds"] = time.perf_counter() - began
            found["freed_bytes"] = freed
        (after,) = self._house.run([request(self._house, asked, "s1", max_tokens=8)])
        same = before.tokens == after.tokens
        return found | {
            "same_tokens": same,
            "note": "the same tokens after waking" if same else "OTHER TOKENS AFTER WAKING",
        }


def named(sampling: dict[str, Any]) -> str:
    """Such as "temperature 0.7, top_p 0.9"."""
    return ", ".join(f"{name} {value}" for name, value in sampling.items())
