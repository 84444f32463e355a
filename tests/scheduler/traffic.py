"""Random traffic for scheduler tests: prompts that share prefixes, all kinds of parameters, deadlines, aborts, failovers."""

from __future__ import annotations

import random
from dataclasses import replace

from inference_stack.core.request import Continuation, Qos, Request, SamplingParams
from tests.scheduler.world import VOCAB, ModelUnderTest, World, true_token


def random_request(rng: random.Random, model: str, number: int, now: float, longest_prompt: int = 120) -> Request:
    family = rng.randrange(4)
    length = rng.randint(1, longest_prompt)
    shared = rng.randint(0, length)
    prompt = [(family * 7 + place) % VOCAB for place in range(shared)]
    prompt += [rng.randrange(VOCAB) for _ in range(length - shared)]
    max_tokens = rng.choice((0, 1, 2, 20, 60)) if rng.random() < 0.5 else rng.randint(1, 90)
    params = SamplingParams(
        max_tokens=max_tokens,
        min_tokens=rng.choice((0, 0, 5)),
        stop_token_ids=rng.choice(((), (), (3,), (5, 9))),
        ignore_eos=rng.random() < 0.4,
        logprobs=rng.choice((None, None, 0, 2)),
        prompt_logprobs=rng.choice((None, None, None, None, 1)),
    )
    request_id = f"{model}-r{number}"
    emitted = tuple(true_token(request_id, length + place) for place in range(rng.randint(0, 4)))
    qos = Qos(
        priority=rng.choice((-100, 0, 0, 0, 100)),
        deadline=now + rng.uniform(1.0, 200.0) if rng.random() < 0.15 else None,
        ttft_deadline=now + rng.uniform(1.0, 80.0) if rng.random() < 0.1 else None,
    )
    keep_emitted = rng.random() < 0.2 and max_tokens > 4 and not set(emitted) & {0, *params.stop_token_ids}
    return Request(
        id=request_id,
        model=model,
        continuation=Continuation(
            prompt=tuple(prompt), params=params, seed=number, emitted=emitted if keep_emitted else ()
        ),
        qos=qos,
        arrival=now,
        cache_salt=rng.choice(("", "", "tenant")),
        isolated=rng.random() < 0.03,
    )


def random_event(rng: random.Random, world: World, model: ModelUnderTest, number: int, max_open: int = 12) -> None:
    """Now and then an arrival (sometimes several choices of one prompt), an abort, or a re-dispatch."""
    roll = rng.random()
    if roll < 0.25 and len(model.open) < max_open:
        request = random_request(rng, model.scheduler.kv.model, number, world.now)
        for choice in range(rng.choice((1, 1, 1, 3)) if not request.continuation.emitted else 1):
            model.submit(replace(request, id=f"{request.id}.{choice}" if choice else request.id), world.now)
    elif roll < 0.28 and model.open:
        model.abort(rng.choice(sorted(model.open)))
    elif roll < 0.30 and model.open:
        redispatch(model, rng.choice(sorted(model.open)), world.now)


def redispatch(model: ModelUnderTest, request_id: str, now: float) -> None:
    """The same completion again, with a higher attempt and everything received so far; then a stale attempt."""
    old = model.requests[request_id]
    emitted = tuple(model.received[request_id])
    again = replace(old, continuation=replace(old.continuation, emitted=emitted), attempt=old.attempt + 1)
    model.submit(again, now)
    model.scheduler.add(old, now)


def soak(world: World, steps: int, seed: int, check_every: int = 1) -> None:
    """Random traffic for `steps` rounds, then drain and verify that nothing is left."""
    rng = random.Random(seed)
    for number in range(steps):
        for model in world.models:
            random_event(rng, world, model, number)
            world.step(model, check=number % check_every == 0)
        world.now += 0.1 * rng.random()
    world.drain(max_steps=20_000)
    world.check_empty()
