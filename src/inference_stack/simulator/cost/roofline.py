"""Step time from first principles: bytes to move and FLOP to do, at the rates that a device's preset says are reached.

    step = overhead + max(FLOP, bytes) of layers + max(FLOP, bytes) of the head + attention's FLOP + KV bytes + activations + links

A preset's guess, good for sizing; `fitted` learns from measured steps. Knows no queue and no clock.
"""

from __future__ import annotations

from typing import Final

from inference_stack.core.errors import invalid
from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.core.request import BLOCK_TOKENS
from inference_stack.simulator.cost.architectures import ACTIVATION_BYTES, WEIGHT_FORMATS, Architecture, WeightFormat
from inference_stack.simulator.cost.hardware import Hardware

LOGIT_BYTES: Final = 8
"""Of one logit: written and read once as fp32."""
MEMORY_SHARE: Final = 0.9
"""Of a device's memory that weights and KV may take. Assumed; it is also vLLM's default."""
WORKSPACE_BYTES: Final = 1_500_000_000
"""Of a device, for activations and recorded steps of GPUs. Assumed; never more than a twentieth of the memory."""


class RooflineCost:
    """One instance of a model on `tensor_parallel` equal devices.

    Raises `InferenceError` for a model that cannot be split that way, or does not fit.
    """

    def __init__(
        self,
        hardware: Hardware,
        architecture: Architecture,
        weights: WeightFormat = WEIGHT_FORMATS["bf16"],
        kv_dtype: str = "float16",
        tensor_parallel: int = 1,
    ) -> None:
        _check_split(hardware, architecture, tensor_parallel)
        self.hardware = hardware
        self.architecture = architecture
        self.weights = weights
        self.tensor_parallel = tensor_parallel
        self.kv_groups: tuple[KvGroupSpec, ...] = architecture.kv_groups(kv_dtype, tensor_parallel)
        if self.kv_bytes() < sum(group.block_bytes for group in self.kv_groups):
            raise invalid(
                f"{architecture.name} in {weights.name} ({self.weight_bytes / 1e9:.1f} GB) leaves no memory for KV on "
                f"{tensor_parallel} x {hardware.name} ({hardware.memory_bytes.value / 1e9:g} GB each)",
                param="tensor_parallel",
            )
        self._overhead = hardware.step_overhead.value + architecture.layers * hardware.layer_seconds.value
        self._token_seconds = architecture.activation_bytes / tensor_parallel / hardware.bandwidth
        self._set_projections()
        self._set_attention()
        self._set_links()

    def _set_projections(self) -> None:
        hardware, model, split = self.hardware, self.architecture, self.tensor_parallel
        operand = hardware.multiplies(self.weights.operand)
        streamed = hardware.bandwidth * (1.0 if operand == self.weights.operand else self.weights.unpack_share)
        self._weight_seconds = model.projection_bytes(self.weights) / split / streamed
        self._flop_seconds = 2 * model.projections / split / hardware.flops(operand)
        head = model.output_head / split
        self._head_seconds = ACTIVATION_BYTES * head / hardware.bandwidth
        self._row_seconds = 2 * head / hardware.flops("bf16")
        self._logit_seconds = LOGIT_BYTES * model.vocab / split / hardware.bandwidth

    def _set_attention(self) -> None:
        hardware, model, split = self.hardware, self.architecture, self.tensor_parallel
        self._pair_seconds = 4 * model.layers * model.heads * model.head_dim / split / hardware.attention_flops
        token_bytes = sum(group.block_bytes for group in self.kv_groups) / BLOCK_TOKENS
        self._kv_seconds = token_bytes / split / hardware.bandwidth

    def _set_links(self) -> None:
        """Two ring all-reduces a layer, each moving 2 (p-1)/p of a token's hidden state over every link."""
        hardware, model, split = self.hardware, self.architecture, self.tensor_parallel
        if hardware.link_bandwidth is None or hardware.link_latency is None or split == 1:
            return
        reductions = 2 * model.layers
        moved = 2 * (split - 1) / split * ACTIVATION_BYTES * model.hidden
        self._overhead += reductions * hardware.link_latency.value
        self._token_seconds += reductions * moved / hardware.link_bandwidth.value

    def step_seconds(self, tokens: int, rows: int, context: int, pairs: int) -> float:
        """Seconds of one step, sizes as `api.CostModel` defines them.

        Attention's FLOP and bytes are added, not compared: in one step prompt chunks are bound by the former and decode rows by
        the latter.
        """
        layers = max(tokens * self._flop_seconds, self._weight_seconds)
        head = max(rows * self._row_seconds, self._head_seconds) + rows * self._logit_seconds
        attention = pairs * self._pair_seconds + (context + tokens) * self._kv_seconds
        return self._overhead + layers + head + attention + tokens * self._token_seconds

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights, over all devices."""
        return self.architecture.weight_bytes(self.weights)

    @property
    def dollars_per_hour(self) -> float:
        """Rent of all devices. An assumption: see the preset."""
        return self.tensor_parallel * self.hardware.dollars_per_hour.value

    def kv_bytes(self) -> int:
        """Memory left for KV, over all devices."""
        memory = self.hardware.memory_bytes.value
        usable = MEMORY_SHARE * memory - min(WORKSPACE_BYTES, memory / 20)
        return max(0, int(self.tensor_parallel * usable) - self.weight_bytes)

    def kv_tokens(self) -> int:
        """Tokens whose KV fits that memory."""
        return self.kv_bytes() // sum(group.block_bytes for group in self.kv_groups) * BLOCK_TOKENS

    def load_seconds(self) -> float:
        """Cold start: a process, then all weights from storage that the devices share."""
        return self.hardware.start_seconds.value + self.weight_bytes / self.hardware.storage_bandwidth.value

    def sleep_seconds(self) -> float:
        """Weights from the devices to host memory, each device over its own link."""
        return self.weight_bytes / self.tensor_parallel / self.hardware.host_bandwidth.value

    def wake_seconds(self) -> float:
        """Weights back to the devices, then one step to warm up. KV starts empty."""
        return self.sleep_seconds() + self.step_seconds(1, 1, 1, 1)


def _check_split(hardware: Hardware, model: Architecture, devices: int) -> None:
    if devices < 1 or model.heads % devices or (model.kv_heads % devices and devices % model.kv_heads):
        raise invalid(
            f"{model.name} with {model.heads} heads and {model.kv_heads} KV heads cannot be split over {devices} devices",
            param="tensor_parallel",
        )
    if devices > 1 and hardware.link_bandwidth is None:
        raise invalid(f"{hardware.name} has no link to split a model over", param="tensor_parallel")
