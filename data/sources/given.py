"""The file or folder given to an import, as the formats see it.

path + options of the command  ->  Given  ->  one format after the other  ->  Source, or None if it is of no format
"""

from __future__ import annotations

import functools
import gzip
from dataclasses import dataclass
from pathlib import Path

from entroloop.data.errors import UserError, reading
from entroloop.data.seeds import Part
from entroloop.data.sources import base, listing
from entroloop.data.sources.listing import Listing


@dataclass(frozen=True)
class Lists:
    """Where the parts of a work leave lists of the images in tars for each other.

    folder  the folder of the lists, which appears with the first one
    part    the part of this process; a work without parts reads the lists that are there and writes none
    """

    folder: Path
    part: Part = Part()  # noqa: RUF009 - immutable


@dataclass
class Given:
    """A file or folder, and what the user asks of it.

    split   the split to read; None for the usual one
    key     name of the array to read, if there may be several
    labels  False ignores labels in an archive of arrays
    lists   where the parts of one work share the lists of images in tars; None shares none
    """

    path: Path
    split: str | None = None
    key: str | None = None
    labels: bool = True
    lists: Lists | None = None

    def no_splits(self) -> None:
        """Raises UserError when the user asks for a split. A format without splits calls this."""
        base.no_splits(str(self.path), self.split)

    @functools.cached_property
    def is_folder(self) -> bool:
        return self.path.is_dir()

    @functools.cached_property
    def head(self) -> bytes:
        """The first 512 bytes of a file's contents, unzipped if the file is gzipped; empty for a folder.

        Raises UserError when the file is empty, or damaged at its beginning.
        """
        if self.is_folder:
            return b""
        with self.path.open("rb") as file:
            head = file.read(512)
        if head[:2] == b"\x1f\x8b":
            with reading(str(self.path), "damaged or truncated"), gzip.open(self.path) as unzipped:
                head = unzipped.read(512)
        if not head:
            raise UserError(f"{self.path}: holds no rows: the file is empty")
        return head

    @functools.cached_property
    def found(self) -> Listing:
        """Everything in a folder; nothing for a file. Raises UserError when the folder is empty."""
        if not self.is_folder:
            return Listing(str(self.path), (), ())
        found = listing.of_folder(self.path)
        if not found.entries:
            hidden = f" (but for hidden files, as {found.hidden[0]})" if found.hidden else ""
            raise UserError(f"{self.path}: empty folder{hidden}: give a folder that holds samples")
        return found
