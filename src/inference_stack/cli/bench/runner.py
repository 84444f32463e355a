"""Sends jobs: a closed loop keeps N in flight, an open loop sends at given times whatever is still unanswered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from inference_stack.cli.bench.spec import Job, Outcome
from inference_stack.core.seams import Clock

Send = Callable[[Job, float | None], Awaitable[Outcome]]
Done = Callable[[Outcome], None]


async def closed_loop(jobs: Sequence[Job], send: Send, concurrency: int, done: Done) -> list[Outcome]:
    """Keep `concurrency` requests in flight until all jobs are done; outcomes in order of the jobs."""
    outcomes: dict[int, Outcome] = {}
    waiting = iter(enumerate(jobs))

    async def worker() -> None:
        for index, job in waiting:
            outcomes[index] = await send(job, None)
            done(outcomes[index])

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(jobs))):
            group.create_task(worker())
    return [outcomes[index] for index in range(len(jobs))]


async def open_loop(jobs: Sequence[Job], send: Send, clock: Clock, limit: int | None, done: Done) -> list[Outcome]:
    """Send each job at its arrival. `limit` caps how many are in flight; waiting for it counts as the request's own time."""
    start = clock.now()
    slots = asyncio.Semaphore(limit or len(jobs) or 1)

    async def one(job: Job) -> Outcome:
        begin = start + job.arrival
        await asyncio.sleep(begin - clock.now())
        async with slots:
            outcome = await send(job, begin)
        done(outcome)
        return outcome

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(job)) for job in jobs]
    return [task.result() for task in tasks]
