"""Keys without effect: one table of every such key, what takes its effect away, and what gives it back."""

import pytest
from loops import TINY

from entroloop.data.errors import UserError
from entroloop.launcher import config as configuration
from entroloop.launcher.effects import _BY_RULE, _BY_SCHEDULE
from entroloop.selection.pool import FreshConfig
from entroloop.trainer.ema import EmaConfig

EDM = ["train.objective=ddpm", "sample.sampler=ddpm"]
TABLE = [
    (["network.kind=mlp"], "network.channels=[8, 8, 8]", "network.kind=unet"),
    (["network.kind=mlp"], "network.fold=[1, 8, 8]", "network.kind=auto"),
    (["network.kind=unet"], "network.width=16", "network.kind=auto"),
    (["network.kind=unet"], "network.depth=1", "network.kind=mlp"),
    ([], "train.label_dropout=0.2", "train.labels=true"),
    ([], "sample.labels=real", "train.labels=true"),
    (["train.ema.rule=none"], "train.ema.halflife_kimg=3", "train.ema.rule=halflife"),
    (["train.ema.rule=power"], "train.ema.rampup=0.1", "train.ema.rule=halflife"),
    ([], "train.ema.power=0.5", "train.ema.rule=power"),
    ([], "train.more_emas.a.max=0.5", "train.more_emas.a.rule=power"),
    (EDM, "sample.sigma_min=0.1", "train.objective=edm"),
    (EDM, "sample.sigma_max=20", "train.objective=edm"),
    (EDM, "sample.rho=6", "train.objective=edm"),
    ([], "sample.guide_kind=sims", "sample={guide: previous, guide_weight: 1, steps: 3}"),
    ([], "loop.fresh.schedule=linear", "loop.fresh.share=0.1"),
    (["loop.fresh.share=0.1"], "loop.fresh.over=3", "loop.fresh.schedule=linear"),
    (["loop.fresh.share=0.1"], "loop.fresh.decay=0.4", "loop.fresh.schedule=decaying"),
]
BASE = {**TINY, "network": {}}


@pytest.mark.parametrize(("others", "key", "cure"), TABLE, ids=[key for _, key, _ in TABLE])
def test_a_key_without_effect_is_refused_and_its_default_is_not(others, key, cure):
    with pytest.raises(UserError) as caught:
        configuration.compose(BASE, [*others, key], "tiny.yaml")
    name = key.partition("=")[0]
    assert f": {name}=" in str(caught.value)
    assert "has no effect with " in str(caught.value)
    with_cure = [cure, key] if cure.startswith("sample={") else [key, cure]
    configuration.compose(BASE, [*others, *with_cure], "tiny.yaml")
    configuration.compose(BASE, others, "tiny.yaml")


def test_keys_of_an_own_network_are_its_options(tmp_path, monkeypatch):
    (tmp_path / "idle_net.py").write_text("import torch\nclass Net(torch.nn.Linear):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    for key in ("channels=[8]", "width=3", "dropout=0.1"):
        with pytest.raises(UserError, match=r"has no effect with network\.kind=idle_net:Net"):
            configuration.compose(BASE, ["network.kind=idle_net:Net", f"network.{key}"], "tiny.yaml")


def test_what_is_saved_of_any_configuration_is_not_refused(tmp_path):
    path = tmp_path / "saved.yaml"
    path.write_bytes(configuration.dump(configuration.compose(BASE, EDM, "tiny.yaml")))
    configuration.load(path)


def test_every_rule_and_schedule_has_its_row():
    rules = EmaConfig.model_fields
    assert {key for keys in _BY_RULE.values() for key in keys} == rules.keys() - {"rule"}
    assert {key for keys in _BY_SCHEDULE.values() for key in keys} == FreshConfig.model_fields.keys() - {
        "share", "schedule",
    }  # fmt: skip
