"""CUDA's driver as far as addresses and the memory behind them are managed apart from each other.

    reserve ─▶ addresses       create ─▶ memory       map, allow ─▶ memory at addresses       unmap, release ─▶ memory is free again

Whoever asks gets an address or a typed error. Knows calls and their errors; what is kept at an address is others' business.
Reference: "Virtual Memory Management", CUDA driver API.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_ubyte, c_ulonglong, c_ushort, c_void_p
from typing import Any, Final, Protocol

OUT_OF_MEMORY: Final = 2
"""CUDA_ERROR_OUT_OF_MEMORY"""

PINNED: Final = 1
DEVICE: Final = 1
READ_WRITE: Final = 3
MINIMUM: Final = 0
"""CU_MEM_ALLOCATION_TYPE_PINNED, CU_MEM_LOCATION_TYPE_DEVICE, CU_MEM_ACCESS_FLAGS_PROT_READWRITE and
CU_MEM_ALLOC_GRANULARITY_MINIMUM."""


class DriverError(RuntimeError):
    """A call that failed, with CUDA's number and name for why."""

    def __init__(self, call: str, code: int, name: str) -> None:
        super().__init__(f"{call} failed: {name} ({code})")
        self.call, self.code = call, code

    @property
    def out_of_memory(self) -> bool:
        """Whether the device had too little memory."""
        return self.code == OUT_OF_MEMORY


class Driver(Protocol):
    """Addresses and memory of one device. Sizes and places are multiples of `granularity`. Every method raises `DriverError`."""

    def granularity(self) -> int:
        """Bytes of the smallest piece of memory."""
        ...

    def reserve(self, nbytes: int) -> int:
        """Addresses with nothing behind them; the first one."""
        ...

    def free(self, address: int, nbytes: int) -> None:
        """Give addresses back, as they were reserved, with nothing behind them."""
        ...

    def create(self, nbytes: int) -> int:
        """Memory without an address; a handle."""
        ...

    def release(self, handle: int) -> None:
        """Let go of memory: free once it is nowhere mapped."""
        ...

    def map(self, address: int, nbytes: int, handle: int) -> None:
        """Put all of a handle's memory behind addresses. It cannot be used before `allow`."""
        ...

    def allow(self, address: int, nbytes: int) -> None:
        """Let the device read and write there."""
        ...

    def unmap(self, address: int, nbytes: int) -> None:
        """Take the memory from behind the addresses of one `map`."""
        ...


class _Location(ctypes.Structure):
    _fields_ = (("type", c_int), ("id", c_int))


class _Flags(ctypes.Structure):
    _fields_ = (("compression", c_ubyte), ("rdma", c_ubyte), ("usage", c_ushort), ("reserved", c_ubyte * 4))


class _Properties(ctypes.Structure):
    """CUmemAllocationProp"""

    _fields_ = (
        ("type", c_int),
        ("handle_types", c_int),
        ("location", _Location),
        ("windows_data", c_void_p),
        ("flags", _Flags),
    )


class _Access(ctypes.Structure):
    """CUmemAccessDesc"""

    _fields_ = (("location", _Location), ("flags", c_int))


SIGNATURES: Final[dict[str, tuple[Any, ...]]] = {
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuMemGetAllocationGranularity": (POINTER(c_size_t), POINTER(_Properties), c_int),
    "cuMemAddressReserve": (POINTER(c_ulonglong), c_size_t, c_size_t, c_ulonglong, c_ulonglong),
    "cuMemAddressFree": (c_ulonglong, c_size_t),
    "cuMemCreate": (POINTER(c_ulonglong), c_size_t, POINTER(_Properties), c_ulonglong),
    "cuMemRelease": (c_ulonglong,),
    "cuMemMap": (c_ulonglong, c_size_t, c_size_t, c_ulonglong, c_ulonglong),
    "cuMemUnmap": (c_ulonglong, c_size_t),
    "cuMemSetAccess": (c_ulonglong, c_size_t, POINTER(_Access), c_size_t),
}


class CudaDriver:
    """A `Driver`: libcuda for the device with this number, whose context torch has made.

    Raises OSError where there is no driver, AttributeError where it is older than CUDA 10.2.
    """

    def __init__(self, device: int, library: Any = None) -> None:
        self._library = library or ctypes.CDLL("libcuda.so.1")
        for name, arguments in SIGNATURES.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = list(arguments), c_int
        location = _Location(type=DEVICE, id=device)
        self._properties = _Properties(type=PINNED, location=location)
        self._access = _Access(location=location, flags=READ_WRITE)

    def granularity(self) -> int:
        """See `Driver`."""
        found = c_size_t()
        self._call("cuMemGetAllocationGranularity", byref(found), byref(self._properties), MINIMUM)
        return found.value

    def reserve(self, nbytes: int) -> int:
        """See `Driver`."""
        address = c_ulonglong()
        self._call("cuMemAddressReserve", byref(address), nbytes, 0, 0, 0)
        return address.value

    def free(self, address: int, nbytes: int) -> None:
        """See `Driver`."""
        self._call("cuMemAddressFree", address, nbytes)

    def create(self, nbytes: int) -> int:
        """See `Driver`."""
        handle = c_ulonglong()
        self._call("cuMemCreate", byref(handle), nbytes, byref(self._properties), 0)
        return handle.value

    def release(self, handle: int) -> None:
        """See `Driver`."""
        self._call("cuMemRelease", handle)

    def map(self, address: int, nbytes: int, handle: int) -> None:
        """See `Driver`."""
        self._call("cuMemMap", address, nbytes, 0, handle, 0)

    def allow(self, address: int, nbytes: int) -> None:
        """See `Driver`."""
        self._call("cuMemSetAccess", address, nbytes, byref(self._access), 1)

    def unmap(self, address: int, nbytes: int) -> None:
        """See `Driver`."""
        self._call("cuMemUnmap", address, nbytes)

    def _call(self, name: str, *arguments: object) -> None:
        code = int(getattr(self._library, name)(*arguments))
        if code:
            raise DriverError(name, code, self._name_of(code))

    def _name_of(self, code: int) -> str:
        text = c_char_p()
        known = self._library.cuGetErrorName(code, byref(text)) == 0 and text.value
        return text.value.decode() if known and text.value else "an unknown error"
