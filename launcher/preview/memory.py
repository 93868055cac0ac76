"""Forecasts the size of a run's network and the memory that it takes per process, before anything is run.

    configuration -> shape of a sample -> number of parameters -> bytes by engine

P parameters, W processes. The forecast counts weights, gradients, Adam's moments, float32 masters and averages, which
do not depend on the batch. It leaves out activations and caches.
"""

from __future__ import annotations

from pathlib import Path

from entroloop.data.catalogue import SOURCES
from entroloop.data.errors import UserError
from entroloop.data.registry import built_in
from entroloop.data.store import manifest
from entroloop.launcher.config import Config
from entroloop.trainer.catalogue import NETWORKS
from entroloop.trainer.network_size import fitted

ASSUMED_CLASSES = 10
ENGINES = ("single", "ddp", "zero1", "zero2", "zero3")


def sample_shape(config: Config) -> tuple[tuple[int, ...], str]:
    """The shape of a sample, and the origin of the shape: the network's fold, a sealed data set, or an assumption.

    Raises UserError when the configuration does not determine the shape.
    """
    fold, source = config.network.fold, Path(config.data.located)
    if fold is not None:
        return (fold[0] * fold[1] * fold[2],), "network.fold"
    if manifest.is_sealed(source):
        return tuple(manifest.read(source).about["shape"]), str(source)
    known = SOURCES.built_in.get(config.data.source)
    if known is not None and known.shape is not None:
        return known.shape, config.data.source
    if config.network.kind == "mlp" or config.data.resolution is None:
        raise UserError(f"data.resolution: not given, and {source} is not a sealed data set that would tell the shape")
    return (3, config.data.resolution, config.data.resolution), "data.resolution, in colour"


def count_parameters(config: Config, shape: tuple[int, ...]) -> int:
    """Computes P without allocating the network. Raises UserError when the network does not fit the shape."""
    classes = ASSUMED_CLASSES if config.train.labels else 0
    kind, seen = fitted(config.network, shape)
    facts = NETWORKS.built_in.get(kind)
    if facts is not None and facts.counted_by:
        count: int = built_in(facts.counted_by)(config.network, seen, classes)
        return count
    import torch  # takes seconds

    from entroloop.trainer.network import build

    with torch.device("meta"):
        network = build(config.network, shape, classes, 0)
    return sum(p.numel() for p in network.parameters())


def bytes_per_process(config: Config, parameters: int, engine: str, size: int) -> int:
    """Bytes that each of `size` processes holds.

    DDP        float32 weights, gradients and buckets for their reduction; all moments and averages
    ZeRO-1, 2  whole weights (2 bytes each in half precision); shares of masters, moments and averages; in ZeRO-2 also
               a share of the gradients
    ZeRO-3     shares of everything
    """
    averages = 1 + len(config.train.more_emas)
    if engine in ("single", "ddp"):
        return parameters * (4 + 4 + 8 + 4 * averages + (4 if engine == "ddp" else 0))
    width = 4 if config.train.precision == "no" else 2
    shared = 4 + 8 + 4 * averages
    whole = {"zero1": 2 * width, "zero2": width, "zero3": 0}[engine]
    shared += 2 * width - whole
    return parameters * whole + -(-parameters // size) * shared


def describe_network(config: Config) -> list[str]:
    """Lines of the dry run: parameters, and the memory per process by engine."""
    try:
        shape, known_from = sample_shape(config)
    except UserError as error:
        return [f"network        parameters and memory are not known yet: {error}"]
    parameters, size = count_parameters(config, shape), config.slurm.of("train").ranks
    sizes = {engine: bytes_per_process(config, parameters, engine, size) / 2**20 for engine in ENGINES}
    found = ", ".join(f"{e} {mib:,.0f}{' (this one)' if e == config.train.engine else ''}" for e, mib in sizes.items())
    return [
        f"network        {parameters:,} parameters for samples of {'x'.join(map(str, shape))} (from {known_from}), "
        f"{config.train.objective}",
        f"memory         MiB per process on {size}, without activations: {found}",
    ]
