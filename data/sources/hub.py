"""Sets that Hugging Face's `datasets` loads: from the hub, from its cache, or from a folder in one of its layouts.

    hf:NAME, hf:NAME:CONFIGURATION or hf:FOLDER  ->  open_hub  ->  ImageSource, or ArraySource of vectors

Needs datasets (`pip install entroloop[hub]`). Without a network, `datasets` reads its cache (HF_HUB_OFFLINE=1).

N samples, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entroloop.data.address import hidden
from entroloop.data.errors import UserError, reason
from entroloop.data.paths import at_home
from entroloop.data.registry import hint
from entroloop.data.sources.base import ArraySource, ImageSource, pick_split
from entroloop.data.sources.listing import OTHER_KIND
from entroloop.data.sources.parquet import IMAGES, LABELS, bytes_of, labels_in
from entroloop.data.sources.rows import Rows

PREFIX = "hf:"


@dataclass
class HubPayload:
    """Reads encoded images from a table of `datasets`, which is memory-mapped.

    table   a Dataset with one column, of bytes or of {bytes, path}
    column  name of the column
    """

    table: Any
    column: str

    def __call__(self, row: int, limit: int | None = None) -> bytes:
        value = self.table[row][self.column]
        if isinstance(value, dict) and value["bytes"] is None and value["path"]:
            with open(value["path"], "rb") as file:
                return file.read(-1 if limit is None else limit)
        return bytes_of(value)


def open_hub(text: str, split: str | None, key: str | None, labels: bool) -> ImageSource | ArraySource:
    """The images or vectors of one split of a set, in the order of its rows, with the labels if it has such a column.

    text    `hf:` and the name of a set, optionally followed by `:` and one of its configurations, or a folder
    key     name of the column to read; None: the only column of images or vectors
    labels  False ignores labels

    Raises UserError when datasets is not installed, when the set cannot be loaded, when it has no such split,
    configuration or column, when `key` is needed, and when vectors differ in length or are not finite.
    """
    table, chosen = _load(text, split)
    column, of_images = _column(text, table, key)
    label = _label(text, table) if labels else None
    found, classes = None, tuple[str, ...]()
    if label is not None:
        found = labels_in(_arrow(table, label))
        classes = tuple(getattr(table.features[label], "names", None) or ())
    ignored = {name: OTHER_KIND for name in table.column_names if name not in (column, label)}
    prefix = f"{chosen}/"
    if not of_images:
        rows = Rows(Path(text), column, [_vectors(text, table, column)])
        rows.check()
        return ArraySource("Hugging Face", text, rows, found, classes, prefix, ignored)
    import datasets

    alone = table.select_columns([column])
    if isinstance(table.features[column], datasets.Image):
        alone = alone.cast_column(column, datasets.Image(decode=False))
    width = len(str(max(len(table) - 1, 0)))
    names = [f"{prefix}{row:0{width}d}" for row in range(len(table))]
    return ImageSource("Hugging Face", text, names, HubPayload(alone, column), found, classes, ignored)


def _load(text: str, split: str | None) -> tuple[Any, str]:
    """One split as a Dataset, and the split's name."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{text}: needs datasets: pip install 'entroloop[hub]'") from error
    datasets.disable_progress_bars()
    name = text.removeprefix(PREFIX)
    folder = at_home(name)
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():  # by save_to_disk
            saved = datasets.load_from_disk(str(folder))
            named = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
            chosen = pick_split(text, split, sorted(named))
            return named[chosen], chosen
        name, _, wanted = (str(folder), "", "") if folder.exists() else name.partition(":")
        known = datasets.get_dataset_config_names(name)
        configuration = wanted or datasets.get_dataset_default_config_name(name)
        if configuration is None or (wanted and wanted not in known):
            raise UserError(f"{text}: {hint(wanted, known, 'give one of the configurations, hf:NAME:CONFIGURATION:')}")
        chosen = pick_split(text, split, sorted(datasets.get_dataset_split_names(name, configuration)))
        return datasets.load_dataset(name, configuration, split=chosen), chosen
    except UserError:
        raise
    except Exception as error:  # the library, and what it reads with, raise nearly anything
        raise UserError(f"{text}: cannot be loaded ({hidden(reason(error))})") from error


def _column(text: str, table: Any, key: str | None) -> tuple[str, bool]:
    """Name of the column of samples, and whether it holds images."""
    import datasets

    def is_image(feature: Any) -> bool:
        return isinstance(feature, datasets.Image) or getattr(feature, "dtype", "") in ("binary", "large_binary")

    def is_vector(feature: Any) -> bool:
        kind = getattr(getattr(feature, "feature", None), "dtype", "")
        return isinstance(feature, datasets.List | datasets.LargeList) and kind.startswith(("float", "int", "uint"))

    images = [name for name, feature in table.features.items() if is_image(feature)]
    candidates = images + [name for name, feature in table.features.items() if is_vector(feature)]
    named = [name for name in IMAGES if name in images]
    if key is not None and key not in candidates:
        raise UserError(f"--key {key}: {text}: {hint(key, candidates, 'columns of images or vectors:')}")
    if not candidates:
        raise UserError(f"{text}: no column of images or vectors among {', '.join(table.column_names)}")
    if key is None and len(candidates) > 1 and not named:
        raise UserError(f"{text}: holds several columns of images or vectors: give --key {' or '.join(candidates)}")
    chosen = key or (named or candidates)[0]
    return chosen, chosen in images


def _label(text: str, table: Any) -> str | None:
    import datasets

    classed = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    whole = [name for name, feature in table.features.items() if str(getattr(feature, "dtype", "")).startswith("int")]
    named = [name for name in LABELS if name in classed or name in whole]
    if len(classed) > 1 and not named:
        raise UserError(f"{text}: {' and '.join(classed)} could both be the labels: give --no-labels")
    return next(iter(named or classed), None)


def _arrow(table: Any, column: str) -> Any:
    """A column as pyarrow has it."""
    return table.select_columns([column]).with_format("arrow")[:].column(0)


def _vectors(text: str, table: Any, column: str) -> NDArray[Any]:
    """The vectors [N, D]. Raises UserError, naming the first row that differs, when they differ in length."""
    import pyarrow.compute

    values = _arrow(table, column)
    lengths = pyarrow.compute.fill_null(pyarrow.compute.list_value_length(values), -1).to_numpy()
    odd = np.flatnonzero(lengths != lengths[0]) if len(lengths) else np.array([], int)
    if len(odd):
        raise UserError(
            f"{text}: {column}: row {odd[0]} has {max(lengths[odd[0]], 0)} numbers, row 0 has {max(lengths[0], 0)}"
        )
    flat: NDArray[Any] = pyarrow.compute.list_flatten(values).to_numpy()
    return flat.reshape(len(lengths), -1) if len(lengths) else flat.reshape(0, 1)
