"""Keys that have no effect under the other keys of a configuration. One rule for all: such a key is refused.

A key counts as given when its value is not its default, since a saved configuration holds every key. Keys marked HOW
are left alone: they describe a machine or a cluster, and one set of them serves many runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from entroloop.data.config import Section
from entroloop.data.errors import UserError
from entroloop.trainer.catalogue import NETWORKS, OBJECTIVES
from entroloop.trainer.network_config import AUTO

if TYPE_CHECKING:
    from entroloop.launcher.config import Config

_OF_UNET = ("channels", "layers_per_block", "attention", "middle_attention", "norm_groups", "fold")
_OF_MLP = ("width", "depth")
_BY_RULE = {"halflife": ("halflife_kimg", "rampup"), "power": ("power", "max", "power_batch"), "none": ()}
_BY_SCHEDULE = {"constant": (), "linear": ("over",), "decaying": ("decay",)}


def check_effects(config: Config) -> None:
    """Raises UserError for the first key that is given and has no effect, naming the key that takes its effect away."""
    for section, prefix, names, because in _idle(config):
        for name in names:
            value, default = getattr(section, name), type(section).model_fields[name].default
            if value != default:
                raise UserError(
                    f"{prefix}.{name}={_plain(value)}: has no effect with {because}: leave it out (its default is "
                    f"{_plain(default)}), or change {because.partition('=')[0]}"
                )


def _plain(value: object) -> object:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return list(value) if isinstance(value, tuple) else value


def _idle(config: Config) -> Iterator[tuple[Section, str, tuple[str, ...], str]]:
    """(section, its name, keys without effect, the key and value that take their effect away)."""
    network, train, sample, fresh = config.network, config.train, config.sample, config.loop.fresh
    kind = network.kind
    if kind != AUTO and not (kind not in NETWORKS.built_in and NETWORKS.facts(kind).file):
        others = {"unet": _OF_MLP, "mlp": _OF_UNET}.get(kind, (*_OF_UNET, *_OF_MLP, "dropout"))
        yield network, "network", others, f"network.kind={kind}"
    if not train.labels:
        yield train, "train", ("label_dropout",), "train.labels=false"
        yield sample, "sample", ("labels",), "train.labels=false"
    for name, ema in {"ema": train.ema, **{f"more_emas.{name}": ema for name, ema in train.more_emas.items()}}.items():
        others = tuple(key for rule, keys in _BY_RULE.items() if rule != ema.rule for key in keys)
        yield ema, f"train.{name}", others, f"train.{name}.rule={ema.rule}"
    if OBJECTIVES.facts(train.objective).levels is not None:
        yield sample, "sample", ("sigma_min", "sigma_max", "rho"), f"train.objective={train.objective}"
    if sample.guide is None:
        yield sample, "sample", ("guide_kind",), "sample.guide=null"
    if not fresh.share:
        yield fresh, "loop.fresh", ("schedule", "over", "decay"), "loop.fresh.share=0"
    others = tuple(key for schedule, keys in _BY_SCHEDULE.items() if schedule != fresh.schedule for key in keys)
    yield fresh, "loop.fresh", others, f"loop.fresh.schedule={fresh.schedule}"
