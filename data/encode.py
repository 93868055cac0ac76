"""Any source -> sealed features, in the order of the source.

    SOURCE + encoders  ->  encode (all blocks, or those of a part)  ->  a sealed feature folder

The samples are read block by block, as an import reads them, and are not stored. While the encoders compute the
features of one block, a thread reads the next block.

N samples, D features.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from entroloop.data.catalogue import ENCODERS
from entroloop.data.errors import UserError
from entroloop.data.features.blocks import encode_blocks, seal_blocks
from entroloop.data.features.encoder import load_encoder
from entroloop.data.registry import search_also
from entroloop.data.seeds import Part, bounds
from entroloop.data.sources.base import Source
from entroloop.data.sources.begun import Begun, source_digest
from entroloop.data.sources.convert import SampleForm, read_samples
from entroloop.data.sources.recognise import open_samples
from entroloop.data.sources.sealed import SealedSource
from entroloop.data.sources.settings import Settings, default_shard_size, find_form
from entroloop.data.store import manifest
from entroloop.data.store.manifest import Manifest
from entroloop.data.world import World

READING = ("resolution", "split", "color", "key")  # the settings of an import that decide the samples


def encode(
    source: str | Path,
    out: str | Path,
    encoders: Sequence[str],
    *,
    resolution: int | None = None,
    split: str | None = None,
    color: str = "auto",
    key: str | None = None,
    classifier: Path | None = None,
    part: Part | None = None,
    world: World | None = None,
    progress: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Manifest | None:
    """Computes the features of every sample of a source, and seals them: float32 [N, D] per encoder.

    source      whatever `entroloop import` reads: a name, a file or a folder
    out         new folder; the same call continues an interrupted one, and does nothing for a finished one
    encoders    names of encoders, built in, installed or `module:attribute`
    resolution  side in pixels to which images are cropped and resized first; None keeps their size
    classifier  sealed folder of a fitted classifier (RUN/real/classifier), for the encoder `classifier`
    part        makes only the blocks i, i + n, … and seals nothing; a call without a part then seals
    world       the processes that share the blocks; None: this process alone
    stop        called before each block; when it returns True, encode raises Interrupted and can be continued

    Returns the manifest, or None with a part. Raises UserError when the source, a setting or an encoder is wrong, or
    when `out` holds anything but the same features, finished or not.
    """
    world, folder = world or World(), Path(out)
    _check_encoders(encoders, classifier)
    settings = Settings(resolution=resolution, split=split, color=color, key=key, labels=False)
    begun, mine = Begun(folder, "encode"), (part or Part()).split(world.rank, world.size)
    world.on_main(lambda: begun.check_place(str(source)))
    with begun.or_nothing():
        opened = world.agree(lambda: open_samples(str(source), settings, begun.shared(mine)))
        identity: dict[str, Any] = {
            "kind": opened.kind,
            "settings": {name: getattr(settings, name) for name in READING},
            "source_count": len(opened.names),
            "source": source_digest(opened),
        }

        def look() -> SampleForm:
            begun.check(str(source), identity)
            there = begun.facts()
            if there is not None:
                return SampleForm.of(there["form"])
            return find_form(opened, np.arange(len(opened.names)), settings, 1, progress=progress)

        form = world.on_main(look)
        loaded = {n: load_encoder(n, form.shape, classifier=classifier, device=world.device) for n in encoders}
        identity["encoders"] = {name: encoder.digest for name, encoder in loaded.items()}
        facts = {**identity, "form": form.facts()}
        begins = world.on_main(lambda: begun.begin(str(source), identity, facts))
    pieces = _pieces(opened, form)
    if begins:
        world.agree(
            lambda: encode_blocks(
                lambda number: read_samples(opened, np.arange(*pieces[number]), form),
                [last - first for first, last in pieces], loaded, folder, mine,
                unit=form.unit, show=progress and world.is_main, should_stop=stop,
            )
        )  # fmt: skip
    if part is not None:
        return None

    def seal() -> None:
        if not manifest.is_sealed(folder):
            made_from = {"source": identity["source"]}
            seal_blocks(len(opened.names), len(pieces), loaded, folder, about={"encode": facts}, made_from=made_from)
        begun.clean_up()

    world.on_main(seal)
    return manifest.read(folder)


def _check_encoders(names: Sequence[str], classifier: Path | None) -> None:
    if not names:
        raise UserError("--encoder: name at least one encoder")
    search_also(Path.cwd())
    for name in names:
        ENCODERS.check(name)
        if ENCODERS.facts(name).fitted and classifier is None:
            raise UserError(f"--encoder {name}: is fitted to a run's labelled data: give --classifier RUN/real/{name}")


def _pieces(source: Source, form: SampleForm) -> list[tuple[int, int]]:
    """(first row, last row + 1) of every block: the shards of a sealed set, else as many rows as a shard would have."""
    if isinstance(source, SealedSource):
        starts = source.dataset.starts.tolist()
        return list(itertools.pairwise(starts))
    return bounds(0, len(source.names), default_shard_size(form))
