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

class KvView:
    def __init__(
        self, arena: int, offset: int, granule: int, kv_heads: int, head_dim: int, form: int, window: int
    ) -> None: ...

class Tape:
    scratch_bytes: int
    def __init__(self, kernels: str, most_tokens: int, most_samples: int) -> None: ...
    def __len__(self) -> int: ...
    def names(self) -> Sequence[str]: ...
    def start_profile(self) -> None: ...
    def stop_profile(self) -> Sequence[float]: ...
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
    def rope_store(
        self,
        kv: KvView,
        qkv: int,
        qkv_stride: int,
        q_heads: int,
        q: int,
        q_stride: int,
        positions: int,
        cosines: int,
        sines: int,
        q_norm: int,
        k_norm: int,
        eps: float,
        entries: int,
        offsets: int,
    ) -> None: ...
    def attend(
        self,
        kv: KvView,
        q: int,
        q_stride: int,
        q_heads: int,
        out: int,
        out_stride: int,
        entries: int,
        entries_stride: int,
        cu_q: int,
        context: int,
        scale: float,
        softcap: float,
    ) -> None: ...

class Pool:
    threads: int
    def __init__(self, threads: int) -> None: ...
    def run(self, tape: Tape, tokens: int, requests: int, samples: int) -> None: ...

class ScoreJob:
    def __init__(self, rows: int, vocab: int, logits: int, stride: int, tokens: int) -> None: ...
    def report(self, wanted: int, logprob: int, rank: int, ids: int, logprobs: int, width: int) -> None: ...

class SampleJob:
    def __init__(self, rows: int, vocab: int, logits: int, stride: int, tokens: int, finite: int) -> None: ...
    def random(
        self, temperature: int, top_k: int, top_p: int, min_p: int, seed: int, choice: int, position: int
    ) -> None: ...
    def history(
        self,
        row: int,
        token: int,
        count: int,
        is_output: int,
        repetition: int,
        presence: int,
        frequency: int,
    ) -> None: ...
    def bias(self, row: int, token: int, count: int, value: int) -> None: ...
    def banned(self, row: int, token: int, count: int) -> None: ...
    def allowed(self, bits: int, words: int) -> None: ...
    def report(self, wanted: int, logprob: int, rank: int, ids: int, logprobs: int, width: int) -> None: ...

class Sampler:
    def __init__(self, pool: Pool, kernels: str) -> None: ...
    def sample(self, job: SampleJob) -> None: ...
    def score(self, job: ScoreJob) -> None: ...
