"""A GGUF file, read without trusting it.

Every count and length is held against the bytes that are really there before anything is read or allocated by it, so a broken
or hostile file ends in one ModelFileError line, soon and in little memory. The weights are mapped, not read: `raw` gives
views. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...wire.errors import ModelFileError
from .quants import BLOCKS

MAX_KEY = 65_535  # bytes of a key or tensor name, by the format
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY, BOOL = 8, 9, 7
SMALLEST_PAIR = 8 + 4 + 1  # bytes of an empty key, a type and a one-byte value
SMALLEST_TENSOR = 8 + 4 + 8 + 4 + 8


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor's place. `shape` is in numpy's order (slowest dimension first); `offset` counts from the file's start."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int
    nbytes: int


class GgufFile:
    """An open file: `metadata` (typed values by key), `tensors` by name, `raw(name)` as bytes."""

    def __init__(self, path: Path, data: mmap.mmap, metadata: dict[str, Any], tensors: dict[str, TensorInfo]) -> None:
        self.path, self.metadata, self.tensors = path, metadata, tensors
        self._data, self._bytes = data, np.frombuffer(data, np.uint8)

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The tensor's bytes, [nbytes], a read-only view of the mapped file. Raises ModelFileError for an unknown name."""
        info = self.tensors.get(name)
        if info is None:
            raise ModelFileError(f"the file has no tensor {name[:80]!r}")
        return self._bytes[info.offset : info.offset + info.nbytes]

    def release(self) -> None:
        """Let the system take back the pages of the file that were read; they are read again when they are wanted."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._data.madvise(mmap.MADV_DONTNEED)


def open_gguf(path: Path) -> GgufFile:
    """Read and check the whole header of the file at `path`. Raises ModelFileError, in one line."""
    try:
        with Path(path).open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        reason = "the file is empty" if isinstance(error, ValueError) else error.strerror
        raise ModelFileError(f"cannot read the model file: {reason}") from error
    return _Reader(data).file(Path(path))


class _Reader:
    """A cursor over the header that cannot leave the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at, self._size = data, 0, len(data)

    def file(self, path: Path) -> GgufFile:
        n_tensors, n_pairs = self._start()
        metadata: dict[str, Any] = {}
        for _ in range(n_pairs):
            key = self._key("key")
            if key in metadata:
                raise ModelFileError(f"the key {key[:80]!r} stands twice in the header")
            metadata[key] = self._value(self._number("<I"), key)
        found = [self._tensor() for _ in range(n_tensors)]
        alignment = _alignment(metadata)
        return GgufFile(path, self._data, metadata, self._placed(found, -(-self._at // alignment) * alignment, alignment))

    def _start(self) -> tuple[int, int]:
        if self._data[:4] != b"GGUF":
            raise ModelFileError("not a GGUF file (wrong magic)")
        self._at = 4
        version = self._number("<I")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3)
            raise ModelFileError("big-endian GGUF files are not read" if swapped else f"GGUF version {version} is not read")
        n_tensors, n_pairs = self._number("<Q"), self._number("<Q")
        self._must_hold("tensor count", n_tensors, SMALLEST_TENSOR)
        self._must_hold("metadata count", n_pairs, SMALLEST_PAIR)
        return n_tensors, n_pairs

    def _must_hold(self, what: str, n: int, size: int) -> None:
        """Refuse a count of things that the rest of the file has no room for."""
        if n * size > self._size - self._at:
            raise ModelFileError(f"{what} {n} exceeds what the file holds")

    def _number(self, form: str) -> Any:
        size = struct.calcsize(form)
        self._must_hold("the header", 1, size)
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += size
        return value

    def _string(self, what: str, limit: int | None = None) -> str:
        length = self._number("<Q")
        self._must_hold(f"length of {what}", length, 1)
        if limit is not None and length > limit:
            raise ModelFileError(f"length of {what} {length} exceeds {limit}")
        text = self._data[self._at : self._at + length]
        self._at += length
        # Who needs clean text checks for it: a strange byte in a field that nobody reads is no reason to refuse a model.
        return text.decode("utf-8", "surrogateescape")

    def _key(self, what: str) -> str:
        return self._string(f"a {what}", MAX_KEY)

    def _value(self, kind: int, key: str) -> Any:
        if kind == STRING:
            return self._string(f"{key[:80]!r}")
        if kind == ARRAY:
            return self._array(key)
        return self._number(self._form(kind, key))

    def _form(self, kind: int, key: str) -> str:
        if kind not in SCALARS:
            raise ModelFileError(f"{key[:80]!r} has the unknown type {kind}")
        return SCALARS[kind]

    def _array(self, key: str) -> list[Any]:
        kind, n = self._number("<I"), self._number("<Q")
        if kind == ARRAY:
            raise ModelFileError(f"{key[:80]!r} is an array of arrays, which is not read")
        if kind == STRING:
            self._must_hold(f"length of {key[:80]!r}", n, 8)
            return self._strings(n, key)
        dtype = np.dtype(np.uint8 if kind == BOOL else self._form(kind, key))
        self._must_hold(f"length of {key[:80]!r}", n, dtype.itemsize)
        values = np.frombuffer(self._data, dtype, n, self._at)
        self._at += n * dtype.itemsize
        return (values != 0).tolist() if kind == BOOL else values.tolist()

    def _strings(self, n: int, key: str) -> list[str]:
        """`n` strings. A vocabulary has hundreds of thousands, so this is `_string` with its calls written out."""
        data, at, size, unpack, out = self._data, self._at, self._size, struct.Struct("<Q").unpack_from, []
        for _ in range(n):
            if at + 8 > size or (end := at + 8 + unpack(data, at)[0]) > size:
                raise ModelFileError(f"a string of {key[:80]!r} exceeds the file")
            out.append(data[at + 8 : end].decode("utf-8", "surrogateescape"))
            at = end
        self._at = at
        return out

    def _tensor(self) -> TensorInfo:
        """As the header has it: the offset still counts from the start of the data."""
        name = self._key("tensor's name")
        n_dims = self._number("<I")
        if not 1 <= n_dims <= 4:
            raise ModelFileError(f"tensor {name[:80]!r} has {n_dims} dimensions")
        dims = [self._number("<Q") for _ in range(n_dims)]
        kind, offset = self._number("<I"), self._number("<Q")
        if kind not in BLOCKS:
            raise ModelFileError(f"tensor {name[:80]!r} has the unsupported type {kind}")
        block, block_bytes = BLOCKS[kind]
        n = math.prod(dims)
        if n == 0 or n > 1 << 48 or dims[0] % block:
            raise ModelFileError(f"tensor {name[:80]!r} has the impossible shape {dims[::-1]}")
        return TensorInfo(name, tuple(dims[::-1]), kind, offset, n // block * block_bytes)

    def _placed(self, found: list[TensorInfo], start: int, alignment: int) -> dict[str, TensorInfo]:
        """The tensors by name, with offsets in the file; each inside the file, aligned, and clear of its neighbours."""
        tensors: dict[str, TensorInfo] = {}
        end, before = 0, ""
        for info in sorted(found, key=lambda t: t.offset):
            if info.name in tensors:
                raise ModelFileError(f"the tensor {info.name[:80]!r} stands twice in the header")
            if info.offset % alignment:
                raise ModelFileError(f"tensor {info.name[:80]!r} lies off the alignment of {alignment}")
            if start + info.offset + info.nbytes > self._size:
                raise ModelFileError(f"tensor {info.name[:80]!r} reaches past the end of the file (is it complete?)")
            if info.offset < end:
                raise ModelFileError(f"tensors {before[:80]!r} and {info.name[:80]!r} overlap")
            end, before = info.offset + info.nbytes, info.name
            tensors[info.name] = TensorInfo(info.name, info.shape, info.ggml_type, start + info.offset, info.nbytes)
        return tensors


def _alignment(metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", 32)
    is_power = isinstance(alignment, int) and 8 <= alignment <= 1 << 16 and alignment & (alignment - 1) == 0
    if not is_power:
        raise ModelFileError(f"general.alignment {str(alignment)[:20]} is not a power of two from 8 to 65536")
    return alignment
