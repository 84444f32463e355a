"""A dispatcher on a clock that stands still, and nodes played by the test."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from inference_stack.core.fleet import ModelInfo, NodeState
from inference_stack.core.request import Continuation, Request, SamplingParams
from inference_stack.core.step import TokenDelta
from inference_stack.dispatch.dispatcher import Dispatcher, Limits
from inference_stack.dispatch.flight import Flight

MODEL = ModelInfo(
    name="m",
    architecture="llama",
    numerics_id="x",
    max_model_len=100,
    vocab_size=10,
    eos_tokens=(0,),
    kv_groups=(),
    kv_blocks=10,
    max_running=4,
)
READY = NodeState(node="n", ready=True, models=(MODEL,))


def state(name: str, numerics: str = "x", **fields: object) -> NodeState:
    """A node that is ready, unless `fields` say otherwise."""
    return replace(READY, node=name, models=(replace(MODEL, numerics_id=numerics),), **fields)  # type: ignore[arg-type]


def request(name: str = "r", prompt: int = 2, **fields: object) -> Request:
    """A request that asks for its prompt's log-probabilities too."""
    params = SamplingParams(max_tokens=10, prompt_logprobs=0)
    return Request(id=name, model="m", continuation=Continuation(prompt=(1,) * prompt, params=params, seed=7), **fields)  # type: ignore[arg-type]


@dataclass
class House:
    """What the dispatcher ordered, by node; what streams got, by request."""

    limits: Limits = field(default_factory=Limits)
    now: float = 100.0
    sent: list[tuple[str, Request]] = field(default_factory=list)
    stopped: list[tuple[str, str]] = field(default_factory=list)
    news: dict[str, list[TokenDelta]] = field(default_factory=dict)
    moved: list[int] = field(default_factory=list)
    mismatches: int = 0

    def __post_init__(self) -> None:
        self.dispatcher = Dispatcher(self, self, self.limits, lambda: self.now)

    def send(self, node: str, requests: tuple[Request, ...]) -> None:
        self.sent += [(node, one) for one in requests]

    def stop(self, node: str, request_ids: tuple[str, ...]) -> None:
        self.stopped += [(node, one) for one in request_ids]

    def observe_moved(self, requests: int, reason: str) -> None:
        self.moved.append(requests)

    def observe_mismatch(self, model: str) -> None:
        self.mismatches += 1

    def join(self, name: str, **fields: object) -> None:
        """A node comes up."""
        self.dispatcher.attached(name)
        self.dispatcher.state(name, state(name, **fields))  # type: ignore[arg-type]

    def submit(self, one: Request, **fields: object) -> Flight:
        """A client's request."""
        self.news[one.id] = []
        return self.dispatcher.submit(one, self.news[one.id].append, **fields)  # type: ignore[arg-type]

    def take(self) -> list[tuple[str, Request]]:
        """What was sent since the last call."""
        sent, self.sent = self.sent, []
        return sent

    def requests(self) -> list[Request]:
        """The same without the nodes."""
        return [one for _, one in self.take()]

    def emit(self, one: Request, *tokens: int, node: str = "n", **fields: object) -> None:
        """A node's engine has news."""
        delta = TokenDelta(request_id=one.id, attempt=one.attempt, tokens=tokens, **fields)  # type: ignore[arg-type]
        self.dispatcher.deltas(node, (delta,))

    def die(self, *requests: Request, node: str = "n", present: bool = True) -> None:
        """The node's worker dies and comes back."""
        self.dispatcher.state(node, state(node, ready=False))
        self.dispatcher.lost(node, [one.id for one in requests], "killed", present)
        self.dispatcher.state(node, state(node))

    def tokens(self, name: str) -> list[int]:
        """What a stream got so far."""
        return [token for delta in self.news[name] for token in delta.tokens]

    def last(self, name: str) -> TokenDelta:
        """A stream's last news."""
        return self.news[name][-1]


def house(*nodes: str, **limits: object) -> House:
    """A dispatcher with these nodes ready."""
    made = House(Limits(**limits))  # type: ignore[arg-type]
    for name in nodes or ("n",):
        made.join(name)
    return made
