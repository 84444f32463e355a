"""A range of device addresses that stays, while the memory behind it comes and goes in pieces.

What was recorded over these addresses stays true: memory that is put behind them again is seen at the same places. Knows
addresses and pieces; it knows nothing of what is kept there.
"""

from __future__ import annotations

from typing import Final

from inference_stack.engine.cuda_driver import Driver

PIECE_BYTES: Final = 256 << 20
"""Memory is taken in pieces: small enough that copying one overlaps with mapping the next, large enough to be few."""
ALIGNMENT: Final = 512


class Extent:
    """Addresses for at least `capacity` bytes, filled from the beginning. Raises `DriverError`, as all its methods do."""

    def __init__(self, driver: Driver, capacity: int, piece_bytes: int = PIECE_BYTES) -> None:
        self._driver = driver
        step = driver.granularity()
        self._piece = -(-piece_bytes // step) * step
        self.nbytes = -(-max(capacity, 1) // step) * step
        self.address = driver.reserve(self.nbytes)
        self._mapped: list[tuple[int, int]] = []
        self._used = 0

    @property
    def mapped_bytes(self) -> int:
        """Memory that is behind the addresses now."""
        return sum(size for _, size in self._mapped)

    def take(self, nbytes: int) -> int:
        """The address of `nbytes` that nobody has, with memory behind them. Raises ValueError when the capacity is used up."""
        start = self._used
        if start + nbytes > self.nbytes:
            raise ValueError(f"{nbytes} bytes do not fit behind the {start} of {self.nbytes} that are taken")
        while self.mapped_bytes < start + nbytes:
            self.map_next()
        self._used = min(self.nbytes, -(-(start + nbytes) // ALIGNMENT) * ALIGNMENT)
        return self.address + start

    def map_next(self) -> tuple[int, int]:
        """Put memory behind the first addresses that have none: (address, bytes). What it holds is undefined."""
        start = self.mapped_bytes
        size = min(self._piece, self.nbytes - start)
        if size <= 0:
            raise ValueError("there is memory behind all addresses")
        handle = self._driver.create(size)
        try:
            self._place(self.address + start, size, handle)
        finally:
            self._driver.release(handle)  # the mapping keeps the memory; without one it is free again
        self._mapped.append((self.address + start, size))
        return self._mapped[-1]

    def _place(self, address: int, size: int, handle: int) -> None:
        self._driver.map(address, size, handle)
        try:
            self._driver.allow(address, size)
        except BaseException:
            self._driver.unmap(address, size)
            raise

    def pieces(self) -> tuple[tuple[int, int], ...]:
        """(address, bytes) of the memory behind the addresses, in order."""
        return tuple(self._mapped)

    def unmap(self) -> int:
        """Give all memory back; its bytes. Nothing on the device may use it any more."""
        freed = 0
        while self._mapped:
            address, size = self._mapped[-1]
            self._driver.unmap(address, size)
            self._mapped.pop()
            freed += size
        return freed

    def close(self) -> None:
        """Give memory and addresses back."""
        if self.nbytes:
            self.unmap()
            self._driver.free(self.address, self.nbytes)
            self.nbytes = 0
