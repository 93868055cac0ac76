"""A run's configuration: the sections of the rooms, composed; defaults < YAML file < `section.key=value`.

Sections are defined beside the code they configure. A configuration is frozen and complete. It is saved with the run.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from entroloop.data import yaml12
from entroloop.data.config import HOW, PATH, DataConfig, Section
from entroloop.data.errors import UserError, reading
from entroloop.data.paths import expanded
from entroloop.data.registry import hint, is_own, search_also
from entroloop.data.runfolder import FORMAT, Layout, read_config
from entroloop.eval.evaluation_config import EvaluationConfig
from entroloop.launcher import explain
from entroloop.launcher.effects import check_effects
from entroloop.launcher.fork_config import ForkedFrom
from entroloop.launcher.keep_config import KeepConfig
from entroloop.launcher.overrides import check_overrides, with_overrides
from entroloop.launcher.packaged import configuration
from entroloop.launcher.run.phases import BY_NAME
from entroloop.launcher.sweep_config import SweepConfig
from entroloop.selection.options import check_fit
from entroloop.selection.pool import LoopConfig, choice, settled
from entroloop.selection.selection_config import SelectionConfig
from entroloop.slurm.config import KINDS, SlurmConfig
from entroloop.trainer.network_config import NetworkConfig
from entroloop.trainer.sample_config import SampleConfig, check_fits_model
from entroloop.trainer.tracking import TrackingConfig
from entroloop.trainer.train_config import TrainConfig


class Config(Section):
    """Everything that decides a run."""

    format: Annotated[int, HOW] = FORMAT
    """Format number of the configuration. Other numbers are refused."""
    name: Annotated[str, HOW]
    """Name of the run's folder."""
    folder: Annotated[str, HOW, PATH] = Field("runs", min_length=1)
    """Folder that holds the run's folder."""
    seed: int = Field(0, ge=0)
    """Seed of all randomness except the held-out split, which `data.split_seed` decides."""
    generations: Annotated[int, HOW] = Field(6, ge=1, le=1_000_000)
    """Number of generations, including generation 0, which trains on real data. The number may grow when a run is
    resumed."""
    threads: Annotated[int, HOW] = Field(1, ge=1)
    """CPU threads per process. Results repeat byte by byte at equal numbers of threads."""
    modules: Annotated[str | None, HOW, PATH] = None
    """Folder that is appended to the import path, for names of the form `module:attribute`; `null`: the folder of the
    configuration file. The folder comes last, so its modules never hide other modules."""
    data: DataConfig
    loop: LoopConfig = LoopConfig()
    selection: SelectionConfig = SelectionConfig()
    network: NetworkConfig = NetworkConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    keep: Annotated[KeepConfig, HOW] = KeepConfig()
    sweep: Annotated[SweepConfig, HOW] = SweepConfig()
    slurm: Annotated[SlurmConfig, HOW] = SlurmConfig()
    tracking: Annotated[TrackingConfig, HOW] = TrackingConfig()
    forked_from: ForkedFrom = ForkedFrom()

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Config:
        """Reads a YAML file, or the packaged configuration of this name where there is no such file, and changes keys.

        overrides  `section.key=value` texts, as on the command line, or values by dotted key

        Raises UserError, in one line that names the file or key, when anything is wrong.
        """
        if isinstance(overrides, Mapping):
            overrides = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
        return load(Path(path), overrides)

    @field_validator("format")
    @classmethod
    def _known_format(cls, value: int) -> int:
        if value != FORMAT:
            raise ValueError(f"is not the {FORMAT} that this version of entroloop reads")
        return value

    @field_validator("name")
    @classmethod
    def _one_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[\w][\w .+=-]*", name):
            raise ValueError("must be a plain folder name: letters, digits, space and . _ + = -")
        return name

    @property
    def run_folder(self) -> Path:
        return Path(expanded(self.folder)) / self.name

    def at(self, generation: int) -> Config:
        """The configuration that decides a generation or REAL. In a fork, another run may have decided it."""
        of = self.forked_from.generation
        return self if of is None or generation > of else self._before_fork.at(generation)

    @functools.cached_property
    def _before_fork(self) -> Config:
        return validated(self.forked_from.config, "forked_from.config")

    @property
    def encoders(self) -> list[str]:
        """The encoders of every feature space that selection or measures use, each once."""
        return list(dict.fromkeys([*self.evaluation.encoders, self.selection.encoder]))

    @property
    def samples(self) -> int:
        """Number of images that each generation samples: c N candidates, or more where the measures need more."""
        return max(self.loop.candidates * self.data.size, self.evaluation.samples or 0)

    @property
    def sample_shards(self) -> int:
        """Number of shards of the images that each generation samples."""
        return -(-self.samples // self.sample.shard_size)

    @model_validator(mode="after")
    def _sections_fit(self) -> Config:
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        """Contradictions between sections, one line each. Other checks of sections raise UserError themselves."""
        loop, selection, train, sample = self.loop, self.selection, self.train, self.sample
        jobs = [*BY_NAME, *KINDS]
        for kind in self.slurm.phases:
            if kind not in jobs:
                yield f"slurm.phases.{kind}: no such kind of job: {hint(kind, jobs)}"
        if loop.draw == "stratified" and selection.strategy != "random":
            yield f"loop.draw=stratified: is for selection.strategy=random, not {selection.strategy}"
        chosen_how = loop.draw != "uniform" or loop.balanced or selection.options
        if loop.all_candidates and (selection.strategy != "random" or chosen_how):
            yield (
                "loop.all_candidates=true: nothing is chosen: leave loop.draw, loop.balanced and selection.options out "
                f"and set selection.strategy=random (is {selection.strategy})"
            )
        if "classifier" in self.encoders and not self.data.labelled:
            yield "data.labelled=0: the encoder classifier needs labelled real images: give it some hundred"
        if self.generations > 1 and self.chooses_by_class and not train.labels:
            yield f"{self.chooses_by_class}: only a model with train.labels=true samples known classes"
        yield from self._impossible_choices()
        check_fits_model(sample, train.objective, train.labels)
        if sample.guidance != 1 and not train.label_dropout:
            yield (
                f"sample.guidance={sample.guidance:g}: with train.label_dropout=0 the network never learns what "
                "is without a label: set it to 0.1"
            )
        check_effects(self)
        if sample.guide_kind == "neon" and sample.guide_generation(1) is not None and not train.warm_start:
            yield f"sample.guide={sample.guide}: neon extrapolates finetuned weights: set train.warm_start=true"

    def _impossible_choices(self) -> Iterator[str]:
        """One line per generation in which the strategy's options do not fit the number of candidates."""
        options, loop, n = self.selection.options, self.loop, self.data.size
        for generation in range(1, min(self.generations, settled(loop, n) + 1)) if options else ():
            chosen, candidates = choice(loop, generation, n)
            if chosen:
                try:
                    check_fit(self.selection.strategy, options, chosen, candidates)
                except UserError as error:
                    yield f"selection.options of generation {generation}: {error}"

    @property
    def chooses_by_class(self) -> str:
        """The key that makes selection choose by class; empty where no key does."""
        if self.loop.balanced:
            return "loop.balanced=true"
        if self.selection.options.get("per_class"):
            return "selection.options.per_class=true"
        return f"selection.strategy={self.selection.strategy}" if self.selection.by_class else ""

    def settled(self) -> dict[str, Any]:
        """The configuration as plain values without `sweep`, which are saved with the run and compared on resume."""
        return self.model_dump(mode="json", exclude={"sweep"})


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a configuration. Raises UserError, in one line naming the file or key, when anything is wrong with it."""
    check_overrides(overrides)
    return compose(read_yaml(path), overrides, str(path))


def saved_with(run: Path) -> Config:
    """The configuration saved with a run, with the run's current folder. Raises UserError when `run` is no run."""
    layout = Layout(run)
    saved = read_config(layout)
    there = run.resolve()
    moved = compose({**saved, "folder": str(there.parent), "name": there.name}, [], str(layout.config))
    with contextlib.suppress(UserError):  # `folder` may name a variable that is not set here
        as_saved = compose(saved, [], str(layout.config))
        if as_saved.run_folder.resolve() == there:
            return as_saved
    return moved


def read_yaml(path: Path) -> dict[str, Any]:
    """The sections of a configuration: of the file, or of the packaged configuration of this name."""
    with reading(str(path), "not YAML"):
        text = configuration(path).read_text(encoding="utf-8")
    raw = yaml12.read(text, str(path))
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a configuration is a mapping of sections, for example `train: {{kimg: 96}}`")
    return raw


def compose(raw: Mapping[str, Any], overrides: Sequence[str], origin: str) -> Config:
    """Applies `section.key=value` overrides to the values of a file and validates the whole.

    origin  the file, for messages. Its folder is also searched for modules that values name as `module:attribute`.
            A configuration that names such a module stores the folder, so that copies saved elsewhere find the module
    """
    values = with_overrides(raw, overrides)
    if any(map(is_own, _texts(values))):
        values.setdefault("modules", str(Path(origin).parent.absolute()))
        if isinstance(values["modules"], str):
            with _named(f"{origin}: modules={values['modules']}"):
                search_also(Path(expanded(values["modules"])))
    config = validated(values, origin)
    for key, path in config.paths():
        with _named(f"{origin}: {key}={path}"):
            expanded(path)
    return config


@contextlib.contextmanager
def _named(key: str) -> Iterator[None]:
    """Puts the key before a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def validated(values: Mapping[str, Any], origin: str) -> Config:
    """The configuration of complete values. Raises UserError that begins with `origin`."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{origin}: {explain.explain(error, values, Config)}") from error
    except UserError as error:  # raised by a check between sections
        raise UserError(f"{origin}: {error}") from error


def _texts(value: Any) -> Iterator[str]:
    """Every text among the values, at any depth."""
    if isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)
    elif isinstance(value, str):
        yield value


def dump(config: Config) -> bytes:
    """A configuration file that `load` reads back as the same configuration."""
    return yaml12.text_of(config.settled()).encode()
