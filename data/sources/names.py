"""Names of samples in little memory: the text of all names in one buffer, instead of one Python string per name.

    names  ->  Packed  ->  one name at a time

N names.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from array import array
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


class _Names(Sequence[str]):
    """A Sequence that makes each name when it is asked for."""

    @abstractmethod
    def _one(self, row: int) -> str: ...

    def __getitem__(self, row: Any) -> Any:
        rows = range(len(self))[row]  # raises IndexError
        return self._one(rows) if isinstance(rows, int) else [self._one(i) for i in rows]

    def __iter__(self) -> Iterator[str]:
        return map(self._one, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]


class Packed(_Names):
    """Names that take 8 bytes each beside their UTF-8. More can be added."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.text, self.ends = bytearray(), array("q", [0])
        self.extend(names)

    def extend(self, names: Iterable[str]) -> None:
        for name in names:
            self.text += name.encode("utf-8", "surrogatepass")
            self.ends.append(len(self.text))

    def append(self, other: Packed) -> None:
        """Adds the names of `other`."""
        ends = np.frombuffer(other.ends, np.int64)[1:] + len(self.text)
        self.text += other.text
        self.ends.frombytes(ends.tobytes())

    def __len__(self) -> int:
        return len(self.ends) - 1

    def _one(self, row: int) -> str:
        return self.text[self.ends[row] : self.ends[row + 1]].decode("utf-8", "surrogatepass")

    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The text, uint8, and the end of each name, int64 [N + 1], beginning with 0."""
        return np.frombuffer(self.text, np.uint8), np.frombuffer(self.ends, np.int64)

    @staticmethod
    def of(text: NDArray[np.uint8], ends: NDArray[np.int64]) -> Packed:
        """From `arrays`. Raises ValueError when they do not fit together."""
        if ends.ndim != 1 or not len(ends) or ends[0] != 0 or ends[-1] != len(text) or (np.diff(ends) < 0).any():
            raise ValueError("no packed names")
        out = Packed()
        out.text, out.ends = bytearray(text.tobytes()), array("q", ends.astype(np.int64).tobytes())
        return out


@dataclass(eq=False)
class Prefixed(_Names):
    """Names that begin with one of a few prefixes: `prefixes[which[row]] + ends[row]`; which is [N], integers."""

    prefixes: Sequence[str]
    which: NDArray[Any]
    ends: Packed

    def __len__(self) -> int:
        return len(self.ends)

    def _one(self, row: int) -> str:
        return f"{self.prefixes[int(self.which[row])]}{self.ends[row]}"


class _Items(ItemsView[str, str]):
    def __iter__(self) -> Iterator[tuple[str, str]]:
        mapping: Ignored = self._mapping  # type: ignore[attr-defined]
        return ((name, reason) for reason, names in mapping.by_reason.items() for name in names)


class _Values(ValuesView[str]):
    def __iter__(self) -> Iterator[str]:
        return (reason for _, reason in _Items(self._mapping))  # type: ignore[attr-defined]


class Ignored(Mapping[str, str]):
    """Name -> reason, in 8 bytes beside the name. To look one name up takes time like N."""

    def __init__(self, items: Iterable[tuple[str, str]] = ()) -> None:
        self.by_reason: dict[str, Packed] = {}
        self.extend(items)

    def extend(self, items: Iterable[tuple[str, str]]) -> None:
        for name, reason in items:
            self.by_reason.setdefault(reason, Packed()).extend((name,))

    def __getitem__(self, name: str) -> str:
        for reason, names in self.by_reason.items():
            if name in names:
                return reason
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return itertools.chain.from_iterable(self.by_reason.values())

    def __len__(self) -> int:
        return sum(map(len, self.by_reason.values()))

    def items(self) -> ItemsView[str, str]:
        return _Items(self)

    def values(self) -> ValuesView[str]:
        return _Values(self)
