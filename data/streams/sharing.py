"""One copy of a decoded set per machine, shared and decoded by all ranks of the machine.

    Dataset + World  ->  decode_together  ->  array [N, …] in memory that the ranks of each machine share

The memory is an anonymous file of the kernel. It has no name to clean up. The kernel frees it when the last process
that uses it ends, however that process ends.
"""

from __future__ import annotations

import math
import mmap
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entroloop.data import owners
from entroloop.data.store.dataset import Dataset
from entroloop.data.world import World


def decode_together(dataset: Dataset, world: World) -> NDArray[Any]:
    """Every sample, in order: uint8 [N, C, H, W] or float32 [N, D]. All ranks call this with the same set.

    Raises UserError, on every rank, when a shard is damaged.
    """
    shape = (len(dataset), *dataset.shape)
    dtype = np.dtype(dataset.manifest.about["dtype"])
    if world.size == 1:
        out = np.empty(shape, dtype)
        _decode(dataset, out, 0, 1)
        return out
    machines = world.gather_objects(owners.machine())
    here = [rank for rank, machine in enumerate(machines) if machine == machines[world.rank]]
    size = max(1, math.prod(shape) * dtype.itemsize)
    descriptor = _anonymous(size) if world.rank == here[0] else -1
    places = world.gather_objects((os.getpid(), descriptor))
    if world.rank != here[0]:
        pid, number = places[here[0]]
        descriptor = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR)
    memory = mmap.mmap(descriptor, size)
    out = np.frombuffer(memory, dtype, math.prod(shape)).reshape(shape)
    try:  # no rank may close the file before all ranks are done
        world.agree(lambda: _decode(dataset, out, here.index(world.rank), len(here)))
    finally:
        os.close(descriptor)
    return out


def _anonymous(size: int) -> int:
    descriptor = os.memfd_create("entroloop")
    os.posix_fallocate(descriptor, 0, size)
    return descriptor


def _decode(dataset: Dataset, out: NDArray[Any], index: int, count: int) -> None:
    for number in range(index, len(dataset.shard_names), count):
        out[dataset.starts[number] : dataset.starts[number + 1]] = dataset.shard(number)[0]
