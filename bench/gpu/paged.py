"""One layer's KV memory for checks: blocks in shuffled order behind one another's back, and NaN wherever nothing was stored.

    arena   0xFF … │ unit of some block │ 0xFF … │ unit of another │ …       0xFF is NaN in every float type

K and V are put there by this file, in the layout that the op wants, so that attention is checked without the op that stores them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.core.request import BLOCK_TOKENS
from inference_stack.ops.api import GroupTable, KvLayer, StepInputs
from inference_stack.ops.implementation import TOKEN_ROWS, TRANSPOSED_KEYS
from inference_stack.ops.reference.kv_codec import decode, encode

GRANULES = 4
LAYERS = 2


@dataclass(frozen=True, slots=True)
class Part:
    """Positions start … stop-1 of one sequence, as the queries of a step."""

    row: int
    start: int
    stop: int


class Cache:
    """KV memory of `rows` sequences of up to `most` tokens, in the last of some layers.

    `spare` bytes lie before each layer's, so that offsets get large.
    """

    def __init__(
        self,
        spec: KvGroupSpec,
        dtype: torch.dtype,
        rows: int,
        most: int,
        device: torch.device,
        spare: int = 0,
        layout: str = TRANSPOSED_KEYS,
        layers: int = LAYERS,
    ) -> None:
        self._token_rows = layout == TOKEN_ROWS
        self.blocks = -(-most // BLOCK_TOKENS)
        unit, granule = spec.unit_bytes, spec.unit_bytes // GRANULES
        first = -(-spare // unit)
        count = first + rows * self.blocks + 1
        self._layer_bytes = count * unit
        offset = (layers - 1) * self._layer_bytes
        arena = torch.full((layers * self._layer_bytes,), 0xFF, dtype=torch.uint8, device=device)
        self.kv = KvLayer(
            arena=arena, group=0, offset_bytes=offset, granule_bytes=granule, unit_bytes=unit, kv_heads=spec.kv_heads,
            head_dim=spec.head_dim, dtype=dtype, window=spec.window,
        )  # fmt: skip
        order = torch.randperm(rows * self.blocks, generator=torch.Generator().manual_seed(3)) + first
        self.entries = (order * GRANULES).view(rows, self.blocks)
        self.parking = (count - 1) * GRANULES

    def layer(self, number: int) -> KvLayer:
        """Any of the layers: the same blocks, elsewhere."""
        return replace(self.kv, offset_bytes=number * self._layer_bytes)

    def store(self, row: int, k_LGE: Tensor, v_LGE: Tensor) -> None:
        """The first L positions of a sequence; the rest of their last block stays NaN."""
        kv, length = self.kv, k_LGE.shape[0]
        blocks = -(-length // BLOCK_TOKENS)
        units = self._units(row, blocks)
        bytes_BGX = units.view(blocks, kv.kv_heads, -1)
        (keys, key_scales), (values, value_scales) = (encode(x.float(), kv.dtype) for x in (k_LGE, v_LGE))
        width = kv.head_dim * BLOCK_TOKENS * kv.dtype.itemsize
        if self._token_rows:
            _put(bytes_BGX[..., : 2 * width], torch.cat([keys, values], dim=-1), False)
        else:
            _put(bytes_BGX[..., :width], keys, True)
            _put(bytes_BGX[..., width : 2 * width], values, False)
        if key_scales is not None and value_scales is not None:
            half = BLOCK_TOKENS * 2
            _put(bytes_BGX[..., 2 * width : 2 * width + half], key_scales, False)
            _put(bytes_BGX[..., 2 * width + half :], value_scales, False)
        self._rows().index_copy_(0, self._index(row, blocks).to(kv.arena.device), units.to(kv.arena.device))

    def load(self, row: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first positions as they are stored, float64 [L, G, E] on the CPU."""
        kv, blocks = self.kv, -(-length // BLOCK_TOKENS)
        bytes_BGX = self._units(row, blocks).view(blocks, kv.kv_heads, -1)
        width, half = kv.head_dim * BLOCK_TOKENS * kv.dtype.itemsize, BLOCK_TOKENS * 2
        scales: list[Tensor | None] = [None, None]
        if kv.dtype == torch.int8:
            places = (slice(2 * width, 2 * width + half), slice(2 * width + half, None))
            scales = [_take(bytes_BGX[..., place], torch.float16, False)[:length] for place in places]
        if self._token_rows:
            keys, values = _take(bytes_BGX[..., : 2 * width], kv.dtype, False).chunk(2, dim=-1)
        else:
            keys = _take(bytes_BGX[..., :width], kv.dtype, True)
            values = _take(bytes_BGX[..., width : 2 * width], kv.dtype, False)
        k, v = decode(keys[:length], scales[0]), decode(values[:length], scales[1])
        return k.double(), v.double()

    def step(self, parts: Sequence[Part], padding: int = 0, graph: bool = False, width: int = 0) -> StepInputs:
        """The step that computes these parts. `graph`: as recorded steps see it, with no host integers, and so many rows more
        that only fill it up; the block table then has `width` columns, as for the longest sequence there could be."""
        device = self.kv.arena.device
        positions = torch.cat([torch.arange(part.start, part.stop) for part in parts] + [torch.zeros(padding).long()])
        sizes = torch.tensor([part.stop - part.start for part in parts] + [1] * padding)
        row_T = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        bounds = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
        entry_RB = self.entries[torch.tensor([part.row for part in parts] + [0] * padding)]
        entry_T = entry_RB[row_T, positions // BLOCK_TOKENS]
        entry_T[len(entry_T) - padding :] = self.parking
        context = [part.stop for part in parts] + [0] * padding
        wanted = max(width, self.blocks) if graph else -(-max(context) // BLOCK_TOKENS)
        entry_RB = pad(entry_RB[:, :wanted], (0, max(wanted - self.blocks, 0)))
        table = GroupTable(
            entry_RB=entry_RB.to(device), entry_T=entry_T.to(device), offset_T=(positions % BLOCK_TOKENS).to(device)
        )
        return StepInputs(
            tokens_T=torch.zeros_like(positions).to(device), positions_T=positions.to(device), row_T=row_T.to(device),
            context_R=torch.tensor(context).to(device), cu_q_X=bounds.to(device),
            cu_q=() if graph else tuple(bounds.tolist()), context=() if graph else tuple(context),
            kv=(self.kv,), tables=(table,), sampled_S=torch.arange(len(positions)).to(device),
        )  # fmt: skip

    def _rows(self) -> Tensor:
        return self.kv.arena.view(-1, self.kv.granule_bytes)

    def _index(self, row: int, blocks: int) -> Tensor:
        """Granules of a sequence's first units."""
        first = self.entries[row, :blocks] + self.kv.offset_bytes // self.kv.granule_bytes
        return (first[:, None] + torch.arange(GRANULES)).reshape(-1)

    def _units(self, row: int, blocks: int) -> Tensor:
        """The bytes of a sequence's first units, a copy on the CPU."""
        return self._rows().index_select(0, self._index(row, blocks).to(self.kv.arena.device)).cpu()


def _put(place_BGX: Tensor, piece_LGN: Tensor, across: bool) -> None:
    """Numbers of positions [L, G, N] into the bytes of blocks; `across`: N before the tokens of a block."""
    length, groups, width = piece_LGN.shape
    blocks = place_BGX.shape[0]
    full = torch.full((blocks * BLOCK_TOKENS, groups, width * piece_LGN.element_size()), 0xFF, dtype=torch.uint8)
    full[:length] = piece_LGN.cpu().contiguous().view(torch.uint8)
    full_BGTN = full.view(blocks, BLOCK_TOKENS, groups, width, piece_LGN.element_size()).transpose(1, 2)
    ordered = full_BGTN.transpose(2, 3) if across else full_BGTN
    place_BGX.copy_(ordered.reshape(blocks, groups, -1))


def _take(place_BGX: Tensor, dtype: torch.dtype, across: bool) -> Tensor:
    """The opposite of `_put`: numbers [blocks · 16, G, N]."""
    numbers = place_BGX.contiguous().view(dtype)
    blocks, groups = numbers.shape[:2]
    shaped = (
        numbers.view(blocks, groups, -1, BLOCK_TOKENS).transpose(2, 3)
        if across
        else numbers.view(blocks, groups, BLOCK_TOKENS, -1)
    )
    return shaped.transpose(1, 2).reshape(blocks * BLOCK_TOKENS, groups, -1)
