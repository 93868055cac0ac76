"""The loop from Python: run a configuration, read a run back, and draw new samples from it.

    Config  ->  run  ->  Run: rows, samples, features, weights  ->  sample

The package `entroloop` exports these names. N samples, C channels, H height, W width, D features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from entroloop.data import precision
from entroloop.data.errors import UserError
from entroloop.data.progress import Progress
from entroloop.data.runfolder import Layout, Step
from entroloop.data.seeds import bounds
from entroloop.data.store.blocks import load_features
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.index import open_set
from entroloop.data.store.shards import REAL
from entroloop.data.world import World
from entroloop.eval.measures.row import Row
from entroloop.eval.report.runs import read_run
from entroloop.launcher.config import Config, saved_with
from entroloop.launcher.process import world_from_environment
from entroloop.launcher.run import runner
from entroloop.launcher.run.context import Context
from entroloop.launcher.run.phases.sample import label_histogram, settings_of
from entroloop.launcher.run.recipes import is_sealed, next_step, real_folder
from entroloop.trainer import network
from entroloop.trainer.generate import Generator, SamplePlan
from entroloop.trainer.network_config import Attention

if TYPE_CHECKING:
    import pandas

    from entroloop.trainer.network import DenoiserNetwork


@dataclass(frozen=True)
class Run:
    """A run, finished or not, read from its folder whenever a method is called.

    folder  the run's folder
    config  the configuration saved in it

    A method raises UserError, naming the folder, when what it reads is not sealed yet or was removed by retention.
    """

    folder: Path
    config: Config

    @property
    def finished(self) -> bool:
        """Whether every phase of every generation is sealed."""
        return next_step(is_sealed(self._layout), self.config.generations) is None

    @property
    def trained(self) -> list[int]:
        """The generations whose weights are sealed, in order."""
        sealed = is_sealed(self._layout)
        return [g for g in range(self.config.generations) if sealed(Step(g, "train"))]

    def rows(self) -> list[Row]:
        """The measures of each generation that has been evaluated, in order."""
        return list(read_run(self.folder).rows)

    def frame(self) -> pandas.DataFrame:
        """The measures as a pandas frame: one line per generation and encoder, one column per measure.

        The other columns are `generation`, `encoder` and `real_share`, the share of real samples in the training set.
        Undefined values are NaN. Raises UserError when pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UserError("frame: needs pandas: pip install 'entroloop[frames]', or use rows()") from error
        lines = [
            {
                "generation": row.generation,
                "encoder": encoder,
                **{name: np.nan if value is None else value for name, value in measures.items()},
                "real_share": row.value(encoder, "real_share"),
            }
            for row in self.rows()
            for encoder, measures in row.measures.items()
        ]
        return pandas.DataFrame(lines)

    def real(self) -> Dataset:
        """The real data: `all()` is uint8 [N, C, H, W] or float32 [N, D], `labels` int64 [N] or None."""
        return Dataset(real_folder(self.config, self._layout))

    def training_set(self, generation: int) -> Dataset:
        """The set that trained a generation, with the origin of each sample in `provenance`."""
        return open_set(self._layout.of(Step(generation, "select")))

    def samples(self, generation: int) -> Dataset:
        """The samples of a generation, in the form of `real`."""
        return open_set(self._layout.of(Step(generation, "sample")))

    def features(self, generation: int | None, encoder: str | None = None) -> NDArray[np.float32]:
        """Features of a generation's samples, or of the real data (None): float32 [N, D], in the order of the samples.

        encoder  may be left out if the run has only one

        Raises UserError when the run has no such encoder.
        """
        known = self.config.encoders
        if encoder is None and len(known) > 1:
            raise UserError(f"encoder: {self.folder} has features by {', '.join(known)}: name one")
        step = Step(REAL, "prepare") if generation is None else Step(generation, "encode")
        return load_features(self._layout.of(step), encoder or known[0])

    def weights(self, generation: int, average: str = "") -> DenoiserNetwork:
        """The trained network of a generation, in evaluation mode on the CPU.

        average  a name in `train.more_emas`; "" for the network that is sampled from
        """
        return network.load(self._layout.of(Step(generation, "train")), average)

    @property
    def _layout(self) -> Layout:
        return Layout(self.folder)


class Drawn(NamedTuple):
    """Samples, uint8 [n, C, H, W] or float32 [n, D], and their labels, int64 [n]; None for an unconditional model."""

    samples: NDArray[Any]
    labels: NDArray[np.int64] | None


def run(config: Config, *, world: World | None = None, should_stop: Callable[[], bool] = lambda: False) -> Run:
    """Runs the whole loop of a configuration, or what is left of it. A finished run is left as it is.

    world        the processes that work together; None: this process, or the ranks that torchrun or srun started
    should_stop  called often; when it returns True, run raises Interrupted, and the same call goes on later

    Raises UserError, in one line that names the key or file, when the configuration cannot run. Python's logger
    `entroloop` reports each phase at level INFO.
    """
    with _threads(config.threads):
        runner.run(config, world_from_environment() if world is None else world, should_stop)
    return load_run(config.run_folder)


def load_run(folder: str | Path) -> Run:
    """Opens the folder of a run, wherever it is now. Raises UserError when the folder is no run."""
    return Run(Path(folder), saved_with(Path(folder)))


def sample(
    run: Run, n: int, seed: int, *, generation: int | None = None, device: torch.device | str | None = None,
    show: bool = False,
) -> Drawn:  # fmt: skip
    """Draws n new samples from a generation of a run, as its sample phase does. The run does not change.

    seed        with the run's own seed, these are the first n samples of the generation; any other seed gives new ones
    generation  None: the last one that is trained
    device      None: CUDA if there is any, else the CPU
    show        show a bar on a terminal

    A GPU computes attention as `network.attention_backend` of the run says, the CPU by `sdpa`.
    Sample i depends on the seed, the generation and i alone. Raises UserError when the generation is not trained, or
    when n or the seed is negative.
    """
    pieces = list(drawn(run, n, seed, generation=generation, device=device, show=show))
    labels = [own for _, own in pieces if own is not None]
    return Drawn(np.concatenate([own for own, _ in pieces]), np.concatenate(labels) if labels else None)


def drawn(
    run: Run, n: int, seed: int, *, generation: int | None = None, device: torch.device | str | None = None,
    show: bool = False,
) -> Iterator[Drawn]:  # fmt: skip
    """The samples that `sample` returns, one batch at a time. Raises UserError as `sample` does."""
    trained = run.trained
    if generation is None and not trained:
        raise UserError(f"{run.folder}: no generation is trained yet")
    chosen = trained[-1] if generation is None else generation
    if chosen not in trained:
        raise UserError(f"{run.folder}: generation {chosen} is not trained: trained are {trained}")
    if n < 1 or seed < 0:
        raise UserError(f"sample: n is {n} and seed is {seed}: n must be at least 1, and seed at least 0")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    step, layout = Step(chosen, "sample"), Layout(run.folder)
    context = Context(run.config.at(chosen), layout, World(device=torch.device(device)))
    asked = run.config.network.attention_backend  # also in a fork: it decides no sample
    attention: Attention = asked if context.world.device.type == "cuda" else "sdpa"
    settings, guide = settings_of(context, step)
    plan = SamplePlan(seed, chosen, n, settings.shard_size)
    with _threads(run.config.threads), precision.full_precision():
        weights, histogram = layout.of(Step(chosen, "train")), label_histogram(context, step)
        drawing = Generator(weights, settings, plan, context.world.device, histogram, guide, attention)
        with Progress("sample", n, "img", show=show) as progress:
            for first, last in (b for shard in plan.shards for b in bounds(*shard, settings.batch)):
                yield Drawn(*drawing.samples(first, last))
                progress.advance(last - first)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """The number of threads while the context is open, since equal bytes need equal threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
