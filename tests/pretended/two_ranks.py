"""One of two ranks on one CUDA device, over gloo: python two_ranks.py RANK FOLDER. Writes its results as JSON.

The device is the pretended one where ENTROLOOP_PRETENDED names its library. Over a real one gloo cannot pass the rows
of `nearest` round a ring.
"""

import json
import os
import sys
from pathlib import Path

if "ENTROLOOP_PRETENDED" in os.environ:
    import pretended  # noqa: F401  # before torch

import numpy as np
import torch
import torch.distributed as dist

from entroloop.data.world import join, leave
from entroloop.selection import nearest, select


def main(rank: int, folder: Path) -> None:
    # `join` asks for NCCL and binds the group to the device; all but the name of the backend goes to torch
    begin = dist.init_process_group
    gloo = lambda backend, *given, **more: begin("gloo", *given, **more)  # noqa: E731
    setattr(dist, "init_process_group", gloo)  # noqa: B010 - a function
    world = join(rank, 2, device=torch.device("cuda", 0), init_method=f"file://{folder}/store")
    assert dist.group.WORLD is not None
    rows = np.load(folder / "rows.npy")
    mine = rows[world.share(len(rows))]
    passed = nearest(mine, mine, 2, exclude_self=True, world=world) if "pretended" in sys.modules else ()
    found = {
        "nearest": [x.tolist() for x in passed],
        **{
            name: select(mine, len(rows) // 2, name, world=world).ids.tolist() for name in ("greedy", "threshold-decay")
        },
        "sum": world.all_reduce(torch.ones(2, device=world.device)).tolist(),
        "any": world.any(rank == 1),
        "bound": str(dist.group.WORLD.bound_device_id),
    }
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
    leave()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
