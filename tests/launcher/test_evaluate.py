"""The evaluate phase: the same row at every world size, and mirrored copies for a model that was trained with flips."""

from pathlib import Path

import numpy as np
import pytest
from loops import VECTORS, tiny
from present import present
from ranks import on_ranks

from entroloop.data.errors import UserError
from entroloop.data.runfolder import Layout, Step
from entroloop.data.world import World
from entroloop.eval.measures.row import Row
from entroloop.eval.report import page
from entroloop.eval.report.runs import read_run
from entroloop.launcher import status
from entroloop.launcher.run import runner
from entroloop.launcher.run.context import Context
from entroloop.launcher.run.phases import evaluate as evaluating
from entroloop.launcher.run.recipes import recipes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def flipped(tmp_path_factory):
    """A run that is trained with flips, up to its measures; 48 training, 50 measured and 64 held-out images."""
    config = tiny(tmp_path_factory.mktemp("run"), "train.flip=true", "generations=1", "evaluation.samples=50")
    runner.run(config, World(), lambda: False, until=Step(0, "encode"))
    return config


def _row(world, config, target):
    layout = Layout(config.run_folder)
    work = Context(config, layout, world, lambda: False)
    work.layout = _Elsewhere(layout.run, target)
    return evaluating.evaluate(work, Step(0, "evaluate"))


class _Elsewhere(Layout):
    """The run's folders, but for the measures, which go to `target`."""

    target: Path

    def __init__(self, run, target):
        super().__init__(run)
        object.__setattr__(self, "target", target)

    def of(self, step):
        return self.target if step.phase == "evaluate" else super().of(step)


def test_the_row_is_the_same_at_every_world_size(flipped, tmp_path):
    alone = _row(World(), flipped, tmp_path / "1")
    for size in (2, 3):
        rows = on_ranks(size, _row, flipped, tmp_path / str(size))
        assert rows == rows[:1] * size
        assert rows[0].context.model_fields_set == alone.context.model_fields_set
        for mine, theirs in ((rows[0], alone), (rows[0].baseline, alone.baseline)):
            values, wanted = mine.measures["pixel"], theirs.measures["pixel"]
            assert values.keys() == wanted.keys()
            for name, value in values.items():
                assert value == pytest.approx(wanted[name], rel=1e-9, abs=1e-9), name


def test_mirrored_copies_count_after_training_with_flips(flipped, tmp_path):
    row = _row(World(), flipped, tmp_path / "row")
    assert row.encoder("pixel").mirrored_copies_count is True
    work = Context(flipped, Layout(flipped.run_folder), World(), lambda: False)
    selected = work.dataset(Step(0, "select"))
    found = evaluating._mirrored(work, selected, "pixel")
    assert np.array_equal(present(found), selected.all()[:, :, :, ::-1].reshape(48, -1).astype(np.float32))


def test_only_the_chosen_generations_are_measured(tmp_path):
    plain = tiny(tmp_path, "generations=3", of=VECTORS)
    config = tiny(tmp_path, "generations=3", "evaluation.generations=[0, 2]", of=VECTORS)
    both = recipes(plain), recipes(config)
    assert [step for step in both[0] if both[0][step] != both[1][step]] == [Step(1, "evaluate")]
    runner.run(config, World(), lambda: False)
    run = read_run(config.run_folder)
    assert (run.measured, run.done, run.finished) == ([0, 2], 3, True)
    assert run.baseline is not None
    found = status.inspect(config.run_folder)
    assert (found["status"], list(found["spread_gap"]["pixel"])) == ("finished", [0, 2])
    page.write([config.run_folder], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "Not finished yet" not in text
    assert "Over 2 generations" in text
    with pytest.raises(UserError, match=r"generation 1 evaluate is sealed .*evaluation\.generations"):
        runner.run(plain, World(), lambda: False)


@pytest.mark.parametrize(
    ("strategy", "gap", "generation", "warned"),
    [
        ("greedy", 0.1, 0, True),
        ("threshold-decay", 0.1, 0, True),
        ("adaptive-threshold", 0.1, 0, True),
        ("greedy", -0.1, 0, False),
        ("greedy", 0.1, 1, False),  # the last one: nothing is selected any more
        ("random", 0.1, 0, False),
        ("herding", 0.1, 0, False),
        ("voronoi", 0.1, 0, False),
    ],
)
def test_a_spreading_strategy_is_warned_of_where_samples_are_more_spread(
    tmp_path, caplog, strategy, gap, generation, warned
):
    config = tiny(tmp_path, f"selection.strategy={strategy}")
    evaluating._warn_of_defects(
        config, Row(generation=generation, measures={"pixel": {"spread_gap": gap}}, provenance={"real": 1.0})
    )
    assert ("prefers defects to real samples" in caplog.text) == warned
