"""What each phase does: reads sealed folders, does the work of its room, seals one folder.

    prepare   source -> real/{images, classifier, features}
    select    pool of earlier samples + strategy -> generation/selected
    train     selected -> generation/weights
    sample    weights -> generation/samples
    encode    samples -> generation/features
    evaluate  features -> generation/metrics

Every rank of the World calls every function; sample and encode share their shards out, or do one `part` of them and
leave the seal to a later call without a part.
"""

from __future__ import annotations

import functools
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entroloop.data.errors import UserError
from entroloop.data.features import classifier
from entroloop.data.features.blocks import encode_shards, seal_features, write_blocks
from entroloop.data.features.encoder import load_encoder
from entroloop.data.progress import Progress
from entroloop.data.seeds import Part, derive_seed
from entroloop.data.sources.importer import import_dataset
from entroloop.data.store import manifest
from entroloop.data.store.dataset import Dataset
from entroloop.data.store.index import Indexed
from entroloop.data.store.shards import read_shard, seal_dataset, shard_name
from entroloop.data.streams.choice import open_stream
from entroloop.data.streams.stream import TrainingStream
from entroloop.launcher.run.guide import guide_of
from entroloop.launcher.run.inputs import Inputs
from entroloop.launcher.run.phases import evaluate as evaluating
from entroloop.launcher.run.phases import select as selecting
from entroloop.launcher.run.steps import PREPARE, Step
from entroloop.selection.pool import training_size
from entroloop.selection.training_set import write_as_shards
from entroloop.trainer import network as networks
from entroloop.trainer.generate import SamplePlan, generate
from entroloop.trainer.guidance import check_guide
from entroloop.trainer.tracking import Tracking, check_installed
from entroloop.trainer.train import Job, train

log = logging.getLogger(__name__)


@dataclass
class Work(Inputs):
    """The phases of one run in one process of its World."""

    should_stop: Callable[[], bool] = lambda: False
    on_progress: Callable[[Progress], None] = lambda progress: None
    scratch: Path | None = None
    overlap: bool = False
    facts: dict[str, Any] = field(default_factory=dict)  # of the step that ran last, for its line of stats.jsonl
    _said_who_idles: bool = False

    def __post_init__(self) -> None:
        check_installed(self.config.tracking)

    def run(self, step: Step, part: Part | None = None) -> str:
        """Does one step and returns what is worth saying about it. Raises UserError when its inputs are not sealed."""
        self.facts = {}
        if part is not None and step.phase not in ("prepare", "sample", "encode"):
            raise UserError(f"--part {part}: only prepare, sample and encode are done in parts, not {step.phase}")
        function: Callable[[Step, Part | None], str] = getattr(self, f"_{step.phase}")
        said = function(step, part)
        self.world.barrier()
        return said

    @functools.cached_property
    def tracking(self) -> Tracking:
        return Tracking(self.config.tracking, self.layout.run / "tracking")

    # -- the phases ------------------------------------------------------------------------------------------------

    def _prepare(self, step: Step, part: Part | None) -> str:
        if part is not None:
            return self._prepare_part(step, part)
        data = self.config.data
        if self.world.is_main:
            if not manifest.is_sealed(Path(data.source)):
                import_dataset(
                    data.source, self.layout.images, resolution=data.resolution, limit=data.limit, split=data.split,
                    shard_size=data.shard_size,
                )  # fmt: skip
            self.check_real()  # before any work is done
            if "classifier" in self.config.encoders:
                self._fit_classifier()
        self.world.barrier()
        folder = self.layout.of(step)
        self._encode_into(self.real, folder, Part().split(self.world.rank, self.world.size))
        self.world.barrier()
        if self.world.is_main:
            seal_features(self.real, self.encoders, folder, self.made_from(step))
        ignored = sum(self.real.manifest.about.get("import", {}).get("ignored", {}).values())
        others = f", {ignored} other files of the source ignored" if ignored else ""
        return f"{len(self.real)} real {self.kind} of {'x'.join(map(str, self.real.shape))}{others}"

    def _prepare_part(self, step: Step, part: Part) -> str:
        """Encodes a part of the real images, which are imported before; the classifier is fitted and used later."""
        ready = {
            name: load_encoder(name, self.real.shape, classifier=None, device=self.world.device)
            for name in self.config.encoders
            if name != "classifier"
        }
        encode_shards(
            self.real, ready, self.layout.of(step), part, show=self.world.is_main, should_stop=self.should_stop,
            on_progress=self.on_progress,
        )  # fmt: skip
        return f"part {part} of the real {self.kind} by {', '.join(ready)}"

    def _staged(self, step: Step) -> Dataset:
        """The training set of a step, read from a copy on this machine's own disk where there is a scratch folder.

        An index becomes shards there.
        """
        found = self.dataset(step)
        if self.scratch is None:
            return found
        copy = self.scratch / f"entroloop-{found.manifest.digest[:16]}"
        if self.world.local_rank == 0:
            if isinstance(found, Indexed):
                write_as_shards(found, copy)
            else:
                manifest.copy_sealed(found.folder, copy)
        self.world.barrier()
        return Dataset(copy)

    def _fit_classifier(self) -> None:
        folder = self.layout.classifier
        made_from = {"real": self.real.manifest.digest, "recipe": self.recipes[PREPARE]}
        if manifest.is_sealed(folder):
            if manifest.read(folder).made_from == made_from:
                return
            shutil.rmtree(folder)  # of a configuration that was corrected before anything was made from it
        labels = self.real.labels
        assert labels is not None  # check_real
        rows = self.split.labelled
        seed = derive_seed(self.config.data.split_seed, 0, "classifier")
        model = classifier.fit(
            self.real.take(rows), labels[rows], self.real.num_classes, seed=seed, device=self.world.device
        )
        rest = self.split.heldout
        about = {"heldout_accuracy": classifier.accuracy(model, self.real.take(rest), labels[rest])}
        classifier.save(folder, model, about, made_from)

    def _select(self, step: Step, part: Part | None) -> str:
        said, facts = selecting.select_training_set(self, step)
        self.facts |= facts
        return said

    def _train(self, step: Step, part: Part | None) -> str:
        config, generation = self.config, step.generation
        reading = config.data
        data = open_stream(
            self._staged(Step(generation, "select")), reading.mode, workers=reading.workers, buffer=reading.buffer,
            memory_share=reading.memory_share, skip_damaged=reading.skip_damaged, world=self.world,
        )  # fmt: skip
        if config.train.labels and data.labels is None:
            raise UserError("train.labels=true: the training set has no labels; set train.labels=false")
        guide = guide_of(config, self.layout, 0)  # generation 0 has one only if it is from outside the run
        if guide is not None:
            check_guide(guide, data.shape, self.real.num_classes if config.train.labels else 0)
        warm = None
        if config.train.warm_start and generation:
            warm = networks.load(self.layout.of(Step(generation - 1, "train")))
        job = Job(
            config=config.train, network=config.network, seed=derive_seed(config.seed, generation, "train"),
            num_classes=self.real.num_classes, checkpoints=self.layout.checkpoints(generation),
            weights=self.layout.of(step), stats=self.layout.stats(generation),
            made_from=self.made_from(step), title=str(step), warm=warm,
        )  # fmt: skip
        self.facts["nfe"] = config.train.images
        self.facts["engine"] = train(
            job, data, self.world, should_stop=self.should_stop, on_progress=self.on_progress,
            on_stats=lambda line: self._track(line, "train", generation, round(1000 * line["kimg"])),
        )  # fmt: skip
        damaged = self._damaged(data)
        if self.world.is_main and config.keep.checkpoints == "none":
            for old in self.layout.checkpoints(generation).glob("images-*.pt"):
                old.unlink()
        size = training_size(config.loop, generation, config.data.size)
        engine = "" if self.world.size == 1 else f" by {self.facts['engine']} on {self.world.size} ranks"
        return f"{config.train.images / 1000:.1f} kimg on {size} {self.kind}{engine}{damaged}"

    def _track(self, values: Mapping[str, Any], prefix: str, generation: int, seen: int) -> None:
        """Shows numbers in the trackers; their step counts the images of all generations."""
        if self.config.tracking.trackers:
            numbers = {**values, "generation": generation}
            self.tracking.log(numbers, prefix, generation * self.config.train.images + seen)

    def _damaged(self, data: TrainingStream) -> str:
        """Counts what `data.skip_damaged` left out, on all ranks, and names each damaged sample once."""
        every = [line for lines in self.world.gather_objects(data.damaged) for line in lines]
        if not every:
            return ""
        self.facts["damaged"] = len(every)
        if self.world.is_main:
            for line in sorted(set(every)):
                log.warning("left out: %s", line)
        return f", {len(set(every))} damaged samples left out ({len(every)} times)"

    def _sample(self, step: Step, part: Part | None) -> str:
        config, generation = self.config, step.generation
        weights, folder = self.layout.of(Step(generation, "train")), self.layout.of(step)
        plan = SamplePlan(config.seed, generation, config.samples, config.sample.shard_size)
        guide = guide_of(config, self.layout, generation)
        sample = config.sample if guide else config.sample.model_copy(update={"guide": None})
        all_of_it = part or Part()
        self._say_who_idles(len(all_of_it.of(len(plan.shards))))
        drawn = generate(
            weights, folder, sample, plan, all_of_it.split(self.world.rank, self.world.size), self.world.device,
            whole=all_of_it, histogram=self._label_histogram(step), guide=guide, title=str(step),
            show=self.world.is_main, should_stop=self.should_stop, on_progress=self.on_progress,
            on_shard=self._encode_early(step),
        )  # fmt: skip
        self.facts["nfe"] = sample.nfe * sum(self.world.gather_counts(drawn))  # also makes ranks wait for each other
        if part is None and self.world.is_main:
            about = {"num_classes": self.real.num_classes} if config.train.labels else {}
            seal_dataset(folder, about=about, made_from=self.made_from(step))
        return f"{plan.count} {self.kind}, {sample.nfe} NFE" + ("" if part is None else f", part {part}")

    def _encode_early(self, step: Step) -> Callable[[int], None]:
        """With `overlap`, what encodes a shard as soon as it is written, while the next one is being sampled."""
        if not self.overlap:
            return lambda number: None
        samples, folder, encoders = self.layout.of(step), self.layout.of(Step(step.generation, "encode")), self.encoders

        def encode(number: int) -> None:
            write_blocks(encoders, folder, number, read_shard(samples / shard_name(number))[0])

        return encode

    def _label_histogram(self, step: Step) -> NDArray[np.int64] | None:
        """How often each class is to be sampled, by `sample.labels`: int64 [classes]; None for equally often."""
        rule = self.config.sample.labels
        if rule == "balanced" or not self.config.train.labels:
            return None
        source = self.real if rule == "real" else self.dataset(Step(step.generation, "select"))
        assert source.labels is not None
        return np.bincount(source.labels, minlength=self.real.num_classes)

    def _say_who_idles(self, shards: int) -> None:
        """Says once that there are fewer shards than ranks."""
        ranks = self.world.size
        if shards < ranks and self.world.is_main and not self._said_who_idles:
            idle = ranks - shards
            log.info("sampling: %d shard(s) for %d ranks, %d idle: lower sample.shard_size", shards, ranks, idle)
            self._said_who_idles = True

    def _encode(self, step: Step, part: Part | None) -> str:
        dataset, folder = self.dataset(Step(step.generation, "sample")), self.layout.of(step)
        self._encode_into(dataset, folder, (part or Part()).split(self.world.rank, self.world.size))
        self.world.barrier()
        if part is None and self.world.is_main:
            seal_features(dataset, self.encoders, folder, self.made_from(step))
        return f"{len(dataset)} {self.kind} by {', '.join(self.encoders)}"

    def _encode_into(self, dataset: Dataset, folder: Path, part: Part) -> None:
        encode_shards(
            dataset, self.encoders, folder, part, show=self.world.is_main, should_stop=self.should_stop,
            on_progress=self.on_progress,
        )  # fmt: skip

    def _evaluate(self, step: Step, part: Part | None) -> str:
        row = evaluating.evaluate(self, step)
        if self.world.is_main:
            self._track(row.as_dict(), "metrics", step.generation, self.config.train.images)
        first = self.config.evaluation.encoders[0]
        measures = row.measures[first]
        return f"FD {measures['frechet_distance']:.3g}, GS {measures['generalization_score']:.3g} in {first} space"
