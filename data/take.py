"""Chosen rows of any source -> sealed shards, an image folder, an .npz file or a list of keys.

    SOURCE + ids  ->  Taking  ->  DEST

Shards and folders hold the samples in ascending order of their rows in the source, whatever the order of the ids. An
.npz file and a list of keys follow the order of the ids. Memory holds one shard of samples at a time, and the packed
names of the source.

N samples of the source, M chosen ones, C channels, H height, W width, D features.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from entroloop.data import files
from entroloop.data.errors import Interrupted, UserError, reading, unusable
from entroloop.data.ids import check_ids
from entroloop.data.progress import Progress
from entroloop.data.seeds import Part, bounds
from entroloop.data.sources import convert
from entroloop.data.sources.base import ImageSource
from entroloop.data.sources.begun import Begun, check_outside, source_digest
from entroloop.data.sources.convert import SampleForm, ShardTask
from entroloop.data.sources.importer import classes_of, fill
from entroloop.data.sources.npy import write_archive
from entroloop.data.sources.recognise import open_samples
from entroloop.data.sources.settings import Settings, default_shard_size, find_form, num_classes
from entroloop.data.store import manifest
from entroloop.data.store.shards import encode_pngs, seal_dataset

Form = Literal["shards", "folder", "npz", "keys"]
FORMS: tuple[Form, ...] = ("shards", "folder", "npz", "keys")
EDM = "dataset.json"  # the labels of an image folder, and the mark that it is complete
PER_FOLDER = 1000  # images


def take(
    source: str | Path,
    ids: str | Path | ArrayLike,
    dest: str | Path,
    form: Form = "shards",
    *,
    settings: Settings = Settings(),  # noqa: B008 - immutable
    part: Part | None = None,
    workers: int | None = 1,
    progress: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> int:
    """Writes the samples of a source that ids name, and returns their number M.

    source    whatever `entroloop import` reads: a name, a file or a folder
    ids       rows of the source, integers [M], each at most once; or a `.npy` file that holds them
    form      `shards`: sealed shards with the provenance of each sample. `folder`: images as files in EDM's layout,
              with their own bytes unless a setting changes them. `npz`: the array `arr_0`, uint8 [M, H, W, C] or
              float32 [M, D], and `labels` int64 [M]. `keys`: a text file of the source's name of each sample
    settings  how the samples are read; `limit` and `heldout` do not apply
    part      shards and folders only: makes only the pieces i, i + n, … A call without a part then completes them
    workers   number of processes that decode images for shards; None: one per core
    stop      called between pieces; when it returns True, take raises Interrupted and the same call continues

    Raises UserError when the source, a setting or an id is wrong, or when `dest` holds anything else.
    """
    taking = Taking(str(source), Path(dest), form, settings, part)
    return taking.take(ids, workers=workers, progress=progress, stop=stop)


class Taking:
    """An opened source and a place for some of its samples. Checks all that does not depend on the ids."""

    def __init__(self, source: str, dest: Path, form: Form, settings: Settings, part: Part | None = None) -> None:
        if form not in FORMS:
            raise UserError(f"--as {form}: give one of {', '.join(FORMS)}")
        if part is not None and form not in ("shards", "folder"):
            raise UserError(f"--part {part}: goes with --as shards or --as folder, not {form}")
        if form == "npz" and dest.suffix != ".npz":
            raise UserError(f"{dest}: must end in .npz, as --as npz writes one file")
        if form in ("npz", "keys"):
            check_outside(source, dest)
            if dest.is_dir():
                raise UserError(f"{dest}: is a folder: --as {form} writes one file")
        for name in ("limit", "heldout"):
            if getattr(settings, name):
                raise UserError(f"--{name}: ids are rows of the whole source: leave it out")
        self.name, self.dest, self.form, self.settings, self.part = source, dest, form, settings, part
        self.begun = Begun(dest, "take")
        if form not in ("shards", "folder") or (dest / EDM).exists():
            self.source = open_samples(source, settings)
            return
        self.begun.check_place(source)
        with self.begun.or_nothing():
            self.source = open_samples(source, settings, self.begun.shared(part or Part()))
            self.begun.check(source, self._reading)

    def __len__(self) -> int:
        return len(self.source.names)

    def take(
        self,
        ids: str | Path | ArrayLike,
        *,
        workers: int | None = 1,
        progress: bool = False,
        stop: Callable[[], bool] = lambda: False,
    ) -> int:
        """Writes the samples of these rows. See the function `take`."""
        workers = len(os.sched_getaffinity(0)) if workers is None else workers
        with self.begun.or_nothing():
            chosen = check_ids(ids, len(self))
            if self.form == "keys":
                lines = "".join(f"{self.source.names[row]}\n" for row in chosen.tolist())
                files.put(self.dest, lines.encode())
            elif self.form == "npz":
                self._npz(chosen, progress, stop)
            elif self.form == "folder":
                self._folder(np.sort(chosen), workers, progress, stop)
            else:
                self._shards(np.sort(chosen), workers, progress, stop)
        return len(chosen)

    @functools.cached_property
    def _reading(self) -> dict[str, Any]:
        return {
            "form": self.form,
            "kind": self.source.kind,
            "settings": dataclasses.asdict(self.settings),
            "source_count": len(self),
            "source": source_digest(self.source),
        }

    def _identity(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        ids = hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()
        return {**self._reading, "count": len(rows), "ids": ids}

    def _layout(self, rows: NDArray[np.int64], workers: int, progress: bool) -> SampleForm:
        return find_form(self.source, rows, self.settings, workers, progress=progress)

    def check(self, ids: ArrayLike) -> None:
        """Raises UserError when an id is wrong, and when `dest` holds anything but the samples of these rows."""
        chosen = check_ids(ids, len(self))
        if self.form in ("shards", "folder"):
            self._is_complete(np.sort(chosen))

    def _is_complete(self, rows: NDArray[np.int64]) -> bool:
        """Whether `dest` holds the samples of these rows already. Raises UserError when it holds others."""
        identity, complete = self._identity(rows), self.dest / EDM
        if self.form == "folder" and complete.exists():
            with reading(str(complete)):
                there = json.loads(complete.read_bytes()).get("take")
            if there != identity:
                raise UserError(f"{self.dest}: already holds other images: give another folder")
            return True
        self.begun.check(self.name, identity)
        return self.form == "shards" and manifest.is_sealed(self.dest)

    # --- shards ---------------------------------------------------------------------------------------------------

    def _shards(self, rows: NDArray[np.int64], workers: int, progress: bool, stop: Callable[[], bool]) -> None:
        begun, identity = self.begun, self._identity(rows)
        if not self._is_complete(rows):
            there = begun.facts()
            layout = SampleForm.of(there["layout"]) if there else self._layout(rows, workers, progress)
            pieces = bounds(0, len(rows), self.settings.shard_size or default_shard_size(layout))
            if begun.begin(self.name, identity, {"layout": layout.facts()}):
                tasks = [ShardTask(i, first, rows[first:last], keep=True) for i, (first, last) in enumerate(pieces)]
                part = self.part or Part()
                fill(
                    self.source, self.dest, layout, tasks, part, workers=workers, title="take", progress=progress,
                    stop=stop,
                )  # fmt: skip
                if self.part is not None:
                    return
                classes = {"num_classes": num_classes(self.source), "classes": list(self.source.classes)}
                about = {"take": identity, **(classes_of(classes) if layout.labelled else {})}
                made_from = {"source": identity["source"], "ids": identity["ids"]}
                seal_dataset(self.dest, len(pieces), about=about, made_from=made_from)
        begun.clean_up()

    # --- a folder of images -----------------------------------------------------------------------------------------

    def _folder(self, rows: NDArray[np.int64], workers: int, progress: bool, stop: Callable[[], bool]) -> None:
        """EDM's layout: `00012/img00012345.png`, and `dataset.json` with the labels and the names in the source.

        A sub-folder gets its name when it is complete, and `dataset.json` is written last.
        """
        begun, identity = self.begun, self._identity(rows)
        if self._is_complete(rows):
            begun.clean_up()
            return
        there = begun.facts()
        if there:
            layout = SampleForm.of(there["layout"]) if there["layout"] else None
        else:
            layout = None if self._as_they_are else self._layout(rows, workers, progress)
            if layout is not None and len(layout.shape) != 3:
                raise UserError(f"--as folder: {self.name} holds vectors: take them as shards or npz")
        begun.begin(self.name, identity, {"layout": layout and layout.facts()})
        pieces = bounds(0, len(rows), PER_FOLDER)
        mine = list((self.part or Part()).of(len(pieces)))
        with Progress("take", sum(pieces[i][1] - pieces[i][0] for i in mine), "img", show=progress) as bar:
            for number in mine:
                first, last = pieces[number]
                if not (self.dest / f"{number:05d}").exists():
                    if stop():
                        raise Interrupted(f"{self.dest}: stopped; run the same command again to continue")
                    self._sub_folder(number, first, rows[first:last], layout)
                bar.advance(last - first)
        if self.part is not None:
            return
        names = [f"{i // PER_FOLDER:05d}/{name}" for i, name in enumerate(self._file_names(0, rows, layout))]
        labels = self.source.labels if self.settings.labels else None
        found = {
            "labels": None if labels is None else [list(x) for x in zip(names, labels[rows].tolist(), strict=True)],
            "names": {name: self.source.names[row] for name, row in zip(names, rows.tolist(), strict=True)},
            "take": identity,
        }
        files.put(self.dest / EDM, json.dumps(found, ensure_ascii=False).encode() + b"\n")
        begun.clean_up()

    @property
    def _as_they_are(self) -> bool:
        """Whether image files are copied byte by byte, because no setting changes the pixels."""
        return (
            isinstance(self.source, ImageSource) and self.settings.resolution is None and self.settings.color == "auto"
        )

    def _file_names(self, first: int, rows: NDArray[np.int64], layout: SampleForm | None) -> list[str]:
        suffixes = [Path(self.source.names[row]).suffix.lower() if layout is None else ".png" for row in rows.tolist()]
        return [f"img{first + i:08d}{suffix}" for i, suffix in enumerate(suffixes)]

    def _sub_folder(self, number: int, first: int, rows: NDArray[np.int64], layout: SampleForm | None) -> None:
        payloads = self._payloads(rows, layout)
        folder = self.dest / f"{number:05d}"
        try:
            with files.temporary(folder) as own:
                own.mkdir()
                for name, payload in zip(self._file_names(first, rows, layout), payloads, strict=True):
                    with (own / name).open("xb") as file:
                        file.write(payload)
                        file.flush()
                        os.fsync(file.fileno())
                if not folder.exists():
                    own.rename(folder)
            files.sync_folder(self.dest)
        except OSError as error:
            raise unusable(error, self.dest) from error

    def _payloads(self, rows: NDArray[np.int64], layout: SampleForm | None) -> list[bytes]:
        if layout is not None:
            return encode_pngs(convert.read_samples(self.source, rows, layout))
        assert isinstance(self.source, ImageSource)
        found = []
        for row in rows.tolist():
            with self.source.naming(row):
                found.append(self.source.payload(row))
        return found

    # --- one array --------------------------------------------------------------------------------------------------

    def _npz(self, ids: NDArray[np.int64], progress: bool, stop: Callable[[], bool]) -> None:
        """Fills a mapped temporary array row by row of the source, then copies the array into the archive."""
        order = np.argsort(ids)
        layout = self._layout(ids[order], 1, progress)
        channels, *sides = layout.shape
        shape = (len(ids), *sides, channels) if sides else (len(ids), channels)
        labels = self.source.labels[ids] if self.source.labels is not None and layout.labelled else None
        try:
            self.dest.parent.mkdir(parents=True, exist_ok=True)
            with files.temporary(self.dest) as own:
                array = np.lib.format.open_memmap(own, "w+", np.uint8 if sides else np.float32, shape)
                with Progress("take", len(ids), layout.unit, show=progress) as bar:
                    for first, last in bounds(0, len(ids), default_shard_size(layout)):
                        if stop():
                            raise Interrupted(f"{self.dest}: stopped before it was complete; nothing is kept")
                        places = order[first:last]
                        samples = convert.read_samples(self.source, ids[places], layout)
                        array[places] = samples.transpose(0, 2, 3, 1) if sides else samples
                        bar.advance(last - first)
                array.flush()
                files.replace(self.dest, lambda file: write_archive(file, own, labels))
        except OSError as error:
            raise unusable(error, self.dest) from error
