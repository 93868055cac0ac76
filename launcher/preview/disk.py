"""Forecasts the disk use of a run in bytes, from the configuration and, where it can be opened, the source.

    Config -> facts of the source -> bytes of each generation's folders -> lines of the dry run

Images are counted without PNG compression, so the figures are upper bounds for sets of images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from entroloop.data.catalogue import ENCODERS
from entroloop.data.runfolder import FOLDERS, Layout, Step
from entroloop.data.sources.base import ImageSource
from entroloop.data.sources.recognise import open_source
from entroloop.data.sources.settings import num_classes
from entroloop.data.store import manifest
from entroloop.data.store.dataset import Dataset
from entroloop.launcher.config import Config
from entroloop.launcher.preview.memory import count_parameters
from entroloop.launcher.run.recipes import real_folder
from entroloop.launcher.run.retention import removable, size
from entroloop.selection.pool import training_size

LISTED = 20  # generations with lines of their own in a dry run
TAR_BLOCK = 512
PNG_OVERHEAD = 128  # signature, chunks and filter bytes of a small image
COLUMNS = 96  # bytes per sample in the `.json` beside its shard
END = 10240  # bytes of a tar record; a tar is filled up to whole records
FEATURES_OF_OTHERS = 1024  # assumed for encoders that are not built in
STATES = 3  # copies of the parameters in a checkpoint: weights and Adam's two moments; averages are counted separately


@dataclass(frozen=True)
class RealFacts:
    """Facts of the real data: samples, shape of one sample ((C, H, W) or (D,)), whether labelled, number of classes."""

    count: int
    shape: tuple[int, ...]
    labelled: bool
    classes: int

    @staticmethod
    def of(sealed: Dataset) -> RealFacts:
        return RealFacts(len(sealed), sealed.shape, sealed.labelled, sealed.num_classes)


def source_of(config: Config) -> RealFacts:
    """Opens the source or its sealed set. Raises UserError where this machine cannot open it."""
    data = config.data
    folder = real_folder(config, Layout(config.run_folder))
    if manifest.is_sealed(folder):
        return RealFacts.of(Dataset(folder))
    opened = open_source(data.located, data.split)
    count = min(len(opened.names), data.limit or len(opened.names))
    if isinstance(opened, ImageSource):
        channels, width, height = opened.header(0)
        shape = (channels, height, width)
    else:
        shape = next(iter(opened.read([0]))).shape
    if len(shape) == 3 and data.resolution is not None:
        shape = (shape[0], data.resolution, data.resolution)
    return RealFacts(count, shape, opened.labels is not None, num_classes(opened))


def sample_bytes(shape: tuple[int, ...], labelled: bool) -> int:
    """Bytes of one sample in a shard, columns included."""
    payload = math.prod(shape) + shape[1] + PNG_OVERHEAD if len(shape) == 3 else 4 * shape[0] + 128
    tar = TAR_BLOCK + -(-payload // TAR_BLOCK) * TAR_BLOCK
    return tar + (2 * TAR_BLOCK if labelled else 0) + COLUMNS


def shards_bytes(count: int, shard_size: int, one: int) -> int:
    return count * one + -(-count // shard_size) * END


def _dim(encoder: str, shape: tuple[int, ...]) -> int:
    """Features per sample; an assumed number for an encoder that gives no number before it is loaded."""
    dim = ENCODERS.facts(encoder).dim
    if encoder in ENCODERS.built_in:
        return math.prod(shape) if dim is None else dim
    return dim if isinstance(dim, int) else FEATURES_OF_OTHERS


def generation_bytes(config: Config, source: RealFacts, generation: int, parameters: int) -> dict[str, int]:
    """Bytes of one generation's folders by name; for generation -1, of the real data."""
    data, one = config.data, sample_bytes(source.shape, source.labelled)
    features = 4 * sum(_dim(name, source.shape) for name in config.encoders)
    if generation < 0:
        imported = 0 if manifest.is_sealed(Path(data.located)) else shards_bytes(source.count, data.shard_size, one)
        return {"images": imported, "features": source.count * features}
    trained = training_size(config.loop, generation, data.size)
    indexed = data.selected == "index"
    sample = sample_bytes(source.shape, config.train.labels)
    return {
        "selected": COLUMNS * trained if indexed else shards_bytes(trained, data.shard_size, one),
        "weights": 4 * parameters * (1 + len(config.train.more_emas)),
        "samples": shards_bytes(config.samples, config.sample.shard_size, sample),
        "features": config.samples * features,
    }


def describe_disk(config: Config, source: RealFacts | None) -> list[str]:
    """Lines of the dry run about disk use; without a source that can be opened here, nothing is known."""
    if source is None:
        return [f"disk           not known: {config.data.source} cannot be opened here"]
    parameters, last = count_parameters(config, source.shape), config.generations
    real = generation_bytes(config, source, -1, parameters)

    def of(generation: int) -> dict[str, int]:
        return generation_bytes(config, source, generation, parameters)

    lines = [f"real data      disk      {_parts(real)}"]
    lines += [f"generation {g:<3} disk      {_parts(of(g))}" for g in listed(last)]
    gone = _gone(config, of, min(last, LISTED))
    if last > LISTED:
        gone += (last - LISTED) * (gone - _gone(config, of, LISTED - 1))
    states = 4 * parameters * (STATES + 1 + len(config.train.more_emas)) * (config.train.keep + 1)
    total = sum(real.values()) + over_all(last, lambda g: sum(of(g).values()))
    kept = config.generations * states if config.keep.checkpoints == "all" else 0
    left = f", of which {size(total + kept - gone)} stay by keep" if gone or kept else ""
    lines.append(f"disk           at most about {size(total)} in all{left}; checkpoints {size(states)} while training")
    return lines


def listed(generations: int) -> list[int]:
    """The generations that have lines of their own: all, or the first ones and the last."""
    return [*range(min(generations, LISTED)), *([generations - 1] if generations > LISTED else [])]


def over_all(generations: int, amount: Callable[[int], float]) -> float:
    """The sum over all generations; beyond the first ones as if the amount grew evenly from one to the next."""
    rest = generations - LISTED
    more = rest * (amount(LISTED) + amount(generations - 1)) / 2 if rest > 0 else 0
    return sum(map(amount, range(min(generations, LISTED)))) + more


def _gone(config: Config, of: Callable[[int], dict[str, int]], generations: int) -> int:
    """Bytes that `keep` removes from a run of so many generations."""
    shorter = config.model_copy(update={"generations": generations})
    return sum(of(s.generation)[FOLDERS[s.phase]] for s in removable(shorter, lambda step: True))


def _parts(parts: dict[str, int]) -> str:
    return f"{size(sum(parts.values()))}: " + ", ".join(f"{name} {size(count)}" for name, count in parts.items())


def least_bytes(config: Config, source: RealFacts, step: Step) -> float:
    """Bytes that a step writes at least: images count a quarter of their size without compression."""
    parameters = count_parameters(config, source.shape) if step.phase == "train" else 0
    parts = generation_bytes(config, source, step.generation, parameters)
    images = len(source.shape) == 3 and config.data.selected == "shards"
    least = {name: size / 4 if images and name != "features" else size for name, size in parts.items()}
    match step.phase:
        case "prepare":
            return least["images"] + least["features"]
        case "train":
            return parts["weights"] + 4 * parameters * (STATES + 1 + len(config.train.more_emas)) * config.train.keep
    return least.get(FOLDERS.get(step.phase, step.phase), 0)
