"""Which real samples train generation 0, which are held out for the measures, and which train the classifier."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from entroloop.data.errors import UserError
from entroloop.data.seeds import derive_seed, permutation


@dataclass(frozen=True)
class RealSplit:
    """Rows of the real data set, by use. No row has two uses.

    training  train generation 0; int64 [N], sorted
    heldout   serve the measures; no generator and no classifier sees them
    labelled  train the classifier whose features selection and measures use
    trusted   the reference of strategies, if it is not `training`; int64 [T], sorted
    fresh     unused so far, in the order in which the `fresh` paradigm takes them
    """

    training: NDArray[np.int64]
    heldout: NDArray[np.int64]
    labelled: NDArray[np.int64]
    trusted: NDArray[np.int64]
    fresh: NDArray[np.int64]


def split_real(
    count: int, size: int, heldout: int, labelled: int, trusted: int = 0, *, split_seed: int, run_seed: int
) -> RealSplit:
    """Splits `count` real rows.

    `split_seed` alone decides the held-out and the labelled rows, so all runs with this seed are measured alike.
    `split_seed` and `run_seed` together decide which of the other rows train generation 0, whatever `trusted` is.
    Raises UserError when `size`, `heldout`, `labelled` and `trusted` add up to more than `count` rows.
    """
    wanted = size + heldout + labelled + trusted
    if wanted > count:
        apart = f", data.trusted={trusted}" if trusted else ""
        raise UserError(
            f"data.size={size}, data.heldout={heldout}{apart} and data.labelled={labelled} ask for {wanted} real "
            f"samples, but the source has {count}: lower one of them"
        )
    order = permutation(derive_seed(split_seed, 0, "real split"), count)
    rest = order[heldout + labelled :]
    rest = rest[permutation(derive_seed(run_seed, 0, "real training"), len(rest))]
    last = len(rest) - trusted
    return RealSplit(
        training=np.sort(rest[:size]),
        heldout=np.sort(order[:heldout]),
        labelled=np.sort(order[heldout : heldout + labelled]),
        trusted=np.sort(rest[last:]),
        fresh=rest[size:last],
    )
