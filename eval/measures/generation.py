"""One row of measures per generation, from feature sets that have been computed and sealed.

    FeatureSets of each encoder, provenance of the training set  ->  evaluate_generation  ->  Row
    FeatureSets of generation 0: real test vs real train         ->  baseline_row         ->  Row

M generated points, N training points, R held-out points, D features. With a World, each array holds this rank's rows,
and every rank gets the same Row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from entroloop.data.features.encoder import resize_of
from entroloop.data.store.shards import REAL, Provenance
from entroloop.data.world import World
from entroloop.eval.measures.registry import Measured, measure
from entroloop.eval.measures.row import Context, EncoderContext, Row, finite
from entroloop.eval.measures.sets import Sets


@dataclass(frozen=True)
class FeatureSets:
    """One encoder's features of the three sets, and the digest of the encoder's weights."""

    generated: NDArray[np.float32]  # [M, D]
    training: NDArray[np.float32]  #  [N, D]
    heldout: NDArray[np.float32]  #   [R, D]
    digest: str = ""
    mirrored: NDArray[np.float32] | None = None  # [N, D] training images flipped, for models trained with flips


def evaluate_generation(
    generation: int,
    sets: Mapping[str, FeatureSets],
    provenance: Provenance,
    *,
    entropy_size: int | None,
    more: Sequence[str] = (),
    world: World | None = None,
) -> Row:
    """The row of one generation.

    sets          features of unselected samples 0 … M - 1, of the training set and of held-out real images, by encoder
    provenance    of the whole training set
    entropy_size  the number of training images that the entropy estimate of every generation uses
    more          the user's own measures, by name
    """
    measured = {}
    for name, s in sets.items():
        three = Sets(s.generated, s.training, s.heldout, s.mirrored, world=world, entropy_size=entropy_size)
        measured[name] = measure(three, more=more)
    return row_of(generation, measured, _encoders(sets), provenance_shares(provenance), entropy_size)


def baseline_row(
    sets: Mapping[str, FeatureSets],
    *,
    entropy_size: int | None = None,
    more: Sequence[str] = (),
    world: World | None = None,
) -> Row:
    """The row of held-out real images instead of generated images, against the real training set of generation 0.

    It is the yardstick of every table: a model that copies its training set reaches this Frechet distance.
    """
    measured = {}
    for name, s in sets.items():
        two = Sets(s.heldout, s.training, None, s.mirrored, world=world, entropy_size=entropy_size)
        row = measure(two, more=more)
        measured[name] = Measured({**row.values, "generalization_score_ratio": 1.0}, row.context)
    return row_of(None, measured, _encoders(sets), {"real": 1.0}, entropy_size)


def _encoders(sets: Mapping[str, FeatureSets]) -> dict[str, tuple[str, str]]:
    return {name: (features.digest, resize_of(name)) for name, features in sets.items()}


def provenance_shares(provenance: Provenance) -> dict[str, float]:
    """Share of a set's images by origin: "real", or the number of the generation whose model drew the images."""
    generations, counts = np.unique(provenance.generation, return_counts=True)
    return {
        "real" if generation == REAL else str(generation): float(count / len(provenance))
        for generation, count in zip(generations, counts, strict=True)
    }


def row_of(
    generation: int | None,
    measured: Mapping[str, Measured],
    encoders: Mapping[str, tuple[str, str]],
    shares: dict[str, float],
    entropy_size: int | None,
) -> Row:
    """The row of the numbers measured in each encoder. `encoders` holds each encoder's (digest, way of resizing)."""
    first = next(iter(measured.values()))
    counts = {key: first.context[key] for key in ("n_generated", "n_training", "n_reference", "seed")}
    contexts = {
        name: EncoderContext(
            digest=digest, resize=resize, **{k: v for k, v in measured[name].context.items() if k not in counts}
        )
        for name, (digest, resize) in encoders.items()
    }
    return Row(
        generation=generation,
        measures={name: finite(m.values) for name, m in measured.items()},
        provenance=shares,
        context=Context(**counts, entropy_size=entropy_size, encoders=contexts),
    )
