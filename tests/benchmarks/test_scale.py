"""The cost model of selection holds against the exchanges and bytes that 8 ranks count."""

import pytest
import scale


@pytest.mark.slow
@pytest.mark.parametrize("name", scale.NAMES)
def test_the_cost_model_holds_at_8_ranks(name):
    for counted, expected in zip(scale.count(name, 4096, 64, 8), scale.model(name, 4096, 64, 8), strict=True):
        assert expected / 1.5 <= counted <= 1.5 * expected
