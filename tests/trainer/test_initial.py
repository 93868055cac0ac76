"""`train.initial_weights`: generation 0 starts from a UNet that diffusers saved, and nothing else changes."""

import pytest
import torch
from diffusers import UNet2DModel
from loops import TINY, command, tiny

from entroloop.data.errors import UserError
from entroloop.data.runfolder import Layout, Step
from entroloop.data.store import manifest
from entroloop.data.world import World
from entroloop.launcher.run import runner
from entroloop.launcher.run.recipes import recipes
from entroloop.trainer import initial
from entroloop.trainer.network_config import NetworkConfig

NETWORK = NetworkConfig(**TINY["network"])


@pytest.fixture
def saved(tmp_path):
    """A UNet that diffusers made and saved, with another dropout and another resolution than the run's."""
    torch.manual_seed(3)
    unet = UNet2DModel(
        sample_size=16, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4,
        layers_per_block=NETWORK.layers_per_block, down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"), add_attention=False,
    )  # fmt: skip
    unet.save_pretrained(tmp_path / "pipeline" / "unet")
    return tmp_path / "pipeline"


@pytest.mark.slow
def test_generation_0_starts_from_the_saved_weights(saved, tmp_path):
    still = ("train.lr=1e-12", "train.ema.rule=none", "train.weight_decay=0", "generations=1")
    config = tiny(tmp_path, *still, f"train.initial_weights={saved}")
    runner.run(config, World(), lambda: False, until=Step(0, "train"))
    layout = Layout(config.run_folder)
    trained = UNet2DModel.from_pretrained(layout.of(Step(0, "train")) / "unet").state_dict()
    for name, weight in UNet2DModel.from_pretrained(saved / "unet").state_dict().items():
        torch.testing.assert_close(trained[name], weight, rtol=0, atol=1e-6)
    made_from = manifest.read(layout.of(Step(0, "train"))).made_from
    assert made_from["initial_weights"] == initial.digest(saved) == initial.digest(saved / "unet")
    verified = command("verify", layout.run)
    assert verified.returncode == 0, verified.stderr


def test_only_what_depends_on_generation_0_has_another_recipe(saved, tmp_path):
    before, after = recipes(tiny(tmp_path)), recipes(tiny(tmp_path, f"train.initial_weights={saved}"))
    same = [step for step in before if before[step] == after[step]]
    assert [str(step) for step in same] == ["prepare", "generation 0 select"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"channels": (8, 16)}, r"block_out_channels is \[8, 8\] there, \[8, 16\] by the section network"),
        ({"layers_per_block": NETWORK.layers_per_block + 1}, "layers_per_block is"),
        ({"middle_attention": True}, "add_attention is False there, True"),
    ],
)
def test_another_architecture_is_refused_with_the_key(saved, changes, line):
    with pytest.raises(UserError, match=line):
        initial.load(saved, NETWORK.model_copy(update=changes), (1, 8, 8), 0)


def test_labels_channels_and_vectors_are_refused(saved):
    with pytest.raises(UserError, match="num_class_embeds is None there, 11"):
        initial.load(saved, NETWORK, (1, 8, 8), 10)
    with pytest.raises(UserError, match="in_channels is 1 there, 3"):
        initial.load(saved, NETWORK, (3, 8, 8), 0)
    with pytest.raises(UserError, match=r"set network\.kind=unet"):
        initial.load(saved, NETWORK, (5,), 0)


@pytest.mark.parametrize("content", [None, "{", '{"_class_name": "AutoencoderKL"}'])
def test_a_folder_without_a_unet_is_refused_before_work_begins(tmp_path, content):
    (tmp_path / "given").mkdir()
    if content is not None:
        (tmp_path / "given" / "config.json").write_text(content)
    config = tiny(tmp_path, f"train.initial_weights={tmp_path / 'given'}")
    with pytest.raises(UserError, match=r"train\.initial_weights=.*given: "):
        runner.run(config, World(), lambda: False)
    assert not config.run_folder.exists()


def test_weights_that_are_cut_short_are_refused(saved):
    weights = saved / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="its weights cannot be read"):
        initial.load(saved, NETWORK, (1, 8, 8), 0)
