"""Every measure gives the same number on 1, 2 and 3 ranks, also in spaces where rounding decides."""

import numpy as np
import pytest
from thread_world import on_threads

from entroloop.eval.catalogue import MEASURES
from entroloop.eval.measures.registry import measure
from entroloop.eval.measures.sets import Sets


def _spaces():
    r = np.random.default_rng(0)
    low = r.normal(size=(3, 90, 5)) @ r.normal(size=(5, 24)) + 3
    wide = r.normal(size=(3, 40, 100))
    return {
        "more features than points": wide,
        "features that never vary": np.concatenate([r.normal(size=(3, 90, 6)), np.ones((3, 90, 6))], 2),
        "few directions": low,
        "copies of the training set": np.stack([low[1], low[1], low[2]]),
        "pixels": r.integers(0, 4, size=(3, 60, 64)) * 85,
    }


def _on_rank(world, sets):
    generated, training, reference = sets
    cuts = {2: (0.6, 0.1, 0.5), 3: (0.4, 0.5, 0.9)}[world.size]  # uneven; the last of three holds nothing
    mine = []
    for x, cut in zip((generated, training, reference), cuts, strict=True):
        at = [0, round(cut * len(x)), len(x), len(x)]
        mine.append(x[at[world.rank] : at[world.rank + 1]])
    return measure(Sets(*mine, world=world, entropy_size=30)).values


@pytest.mark.slow
@pytest.mark.parametrize("space", _spaces())
def test_every_measure_is_the_same_at_any_number_of_ranks(space):
    sets = _spaces()[space].astype(np.float32)
    alone = measure(Sets(*sets, entropy_size=30)).values
    assert set(alone) == set(MEASURES.built_in)
    scale = max(alone["covariance_trace"], 1)
    for size in (2, 3):
        for values in on_threads(size, _on_rank, sets):
            assert values["ct_score"] == pytest.approx(alone["ct_score"], rel=0, abs=0, nan_ok=True)
            distance = values.pop("frechet_distance")
            assert distance == pytest.approx(alone["frechet_distance"], rel=1e-9, abs=1e-9 * scale)
            assert values == pytest.approx({k: v for k, v in alone.items() if k in values}, rel=1e-9, nan_ok=True)
