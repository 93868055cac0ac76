"""The prepare phase, done once: the real data, the classifier fitted to them, and their features.

source  ->  real/{images, classifier, features}
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from entroloop.data import files
from entroloop.data.runfolder import Step
from entroloop.data.seeds import Part, derive_seed
from entroloop.data.sources.settings import Settings
from entroloop.data.store import manifest
from entroloop.data.store.shards import REAL
from entroloop.launcher.run.phase import Phase
from entroloop.launcher.run.phases.encode import encode_part, encode_set

if TYPE_CHECKING:
    from entroloop.launcher.config import Config
    from entroloop.launcher.run.context import Context


def _decides(config: Config, generation: int) -> dict[str, Any]:
    data = config.data.deciding()
    for name in ("size", "trusted", "buffer", "selected"):  # these belong to the selection and the training
        del data[name]
    return {"data": data, "encoders": config.encoders}


def _forecast(config: Config, generation: int) -> str:
    data = config.data
    return f"{data.source} -> {data.size} training, {data.heldout} held-out, {data.labelled} labelled images"


def _work(context: Context, step: Step, part: Part | None) -> str:
    if part is not None:  # the images are imported already; the classifier is fitted and used later
        ready = context.load_encoders([name for name in context.config.encoders if name != "classifier"])
        encode_part(context, context.real, ready, step, part)
        return f"part {part} of the real {context.kind} by {', '.join(ready)}"
    context.world.on_main(lambda: _begin(context, step))
    encode_set(context, context.real, step, None)
    ignored = sum(context.real.manifest.about.get("import", {}).get("ignored", {}).values())
    others = f", {ignored} other files of the source ignored" if ignored else ""
    return f"{len(context.real)} real {context.kind} of {'x'.join(map(str, context.real.shape))}{others}"


def _begin(context: Context, step: Step) -> None:
    """Imports the real data, checks them, and fits the classifier. Leaves finished results alone."""
    from entroloop.data.sources.importer import import_dataset
    from entroloop.launcher.preview.disk import RealFacts
    from entroloop.launcher.run.ready import check_real
    from entroloop.launcher.run.resume import start_over

    data = context.config.data
    wanted = files.digest([data.source, data.resolution, data.limit, data.split, data.shard_size])
    start_over(context.layout.recipe(Step(REAL, "import")), wanted, [context.layout.images])
    if not manifest.is_sealed(Path(data.located)):
        settings = Settings(resolution=data.resolution, limit=data.limit, split=data.split, shard_size=data.shard_size)
        import_dataset(data.located, context.layout.images, settings, stop=context.should_stop)
        context.facts["imported"] = True  # `entroloop verify` then knows that the run holds its own images
    check_real(context.config, RealFacts.of(context.real))
    if "classifier" in context.config.encoders and not manifest.is_sealed(context.layout.classifier):
        _fit_classifier(context, step)


def _fit_classifier(context: Context, step: Step) -> None:
    from entroloop.data.features import classifier

    real, split = context.real, context.split
    labels = real.labels
    assert labels is not None  # check_real
    seed = derive_seed(context.config.data.split_seed, 0, "classifier")
    model = classifier.fit(
        real.take(split.labelled), labels[split.labelled], real.num_classes, seed=seed, device=context.world.device
    )
    accuracy = classifier.accuracy(model, real.take(split.heldout), labels[split.heldout])
    made_from = {"real": real.manifest.digest, "recipe": context.recipes[step]}
    classifier.save(context.layout.classifier, model, {"heldout_accuracy": accuracy}, made_from)


PREPARE = Phase(
    "prepare", reads=lambda config, generation: [], decides=_decides, work=_work, forecast=_forecast, once=True,
    in_parts=True, processes="one", encodes=True, begins=lambda layout, generation: [layout.classifier],
)  # fmt: skip
