from collections.abc import Sequence

class WeightStore: ...

class Weight:
    outputs: int
    inputs: int
    nbytes: int

def pack_quantised(
    store: WeightStore,
    codes: int,
    scale: int,
    zero: int,
    order: int,
    outputs: int,
    inputs: int,
    bits: int,
    group: int,
    block: int,
    half: bool,
) -> Weight: ...
def pack_dense(store: WeightStore, data: int, outputs: int, inputs: int, form: int) -> Weight: ...
def read_memory(pool: Pool, data: int, bytes: int) -> None: ...
def kernel_names() -> Sequence[str]: ...

class Tape:
    scratch_bytes: int
    def __init__(self, kernels: str, most_tokens: int, most_samples: int) -> None: ...
    def __len__(self) -> int: ...
    def names(self) -> Sequence[str]: ...
    def embed(self, tokens: int, table: Weight, scale: float, out: int, stride: int) -> None: ...
    def linear(
        self, x: int, x_stride: int, weight: Weight, bias: int, y: int, y_stride: int, samples: bool
    ) -> None: ...
    def rmsnorm(
        self, x: int, x_stride: int, weight: int, eps: float, width: int, y: int, y_stride: int, samples: bool
    ) -> None: ...
    def add_rmsnorm(
        self,
        x: int,
        x_stride: int,
        residual: int,
        residual_stride: int,
        weight: int,
        eps: float,
        width: int,
        y: int,
        y_stride: int,
        sum: int,
        sum_stride: int,
        samples: bool,
    ) -> None: ...
    def act_mul(
        self, gate_up: int, stride: int, kind: int, width: int, y: int, y_stride: int, samples: bool
    ) -> None: ...
    def select(self, index: int, x: int, x_stride: int, width: int, y: int, y_stride: int) -> None: ...

class Pool:
    threads: int
    def __init__(self, threads: int) -> None: ...
    def run(self, tape: Tape, tokens: int, requests: int, samples: int) -> None: ...
    def profile(self, tape: Tape, tokens: int, requests: int, samples: int) -> Sequence[float]: ...
