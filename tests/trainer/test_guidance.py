"""Guidance by a second network: its algebra and its refusals."""

import pytest
import torch
from exported import MLP, export

from entroloop.data.errors import UserError
from entroloop.data.store import manifest
from entroloop.trainer import guidance
from entroloop.trainer.diffusion import denoiser
from entroloop.trainer.network_config import NetworkConfig
from entroloop.trainer.sample_config import GuideKind, SampleConfig

LABELS = torch.tensor([0, 1, 2, 0])
SIGMA = torch.tensor(0.7)


def x(seed=0):
    return torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def config(kind, weight):
    return SampleConfig(guide="some", guide_kind=kind, guide_weight=weight)


def guided(kind, weight, weights, guide):
    found = guidance.denoiser_of(weights, config(kind, weight), guide, lambda net: net)
    with torch.no_grad():
        return found(x(), SIGMA, LABELS)


@pytest.fixture
def pair(tmp_path):
    """Two sealed networks and what each denoises x to."""
    own, guide = tmp_path / "own", tmp_path / "guide"
    nets = export(own, moved=0.1), export(guide)
    with torch.no_grad():
        estimates = [denoiser("edm", net)(x(), SIGMA, LABELS) for net in nets]
    assert (estimates[0] - estimates[1]).abs().max() > 0.01
    return own, guide, *estimates


@pytest.mark.parametrize("w", [0.0, 1.0, 2.5])
def test_autoguidance_and_sims_by_their_formulas(pair, w):
    own, guide, mine, theirs = pair
    torch.testing.assert_close(guided("autoguidance", w, own, guide), theirs + w * (mine - theirs))
    torch.testing.assert_close(guided("sims", w, own, guide), (1 + w) * theirs - w * mine)


def test_weights_that_mean_no_guidance(pair):
    own, guide, mine, theirs = pair
    torch.testing.assert_close(guided("autoguidance", 1.0, own, guide), mine)
    torch.testing.assert_close(guided("autoguidance", 0.0, own, guide), theirs)
    torch.testing.assert_close(guided("sims", 0.0, own, guide), theirs)
    torch.testing.assert_close(guided("neon", 0.0, own, guide), theirs)


def test_neon_is_one_network_with_extrapolated_weights(tmp_path):
    base, finetuned = export(tmp_path / "base"), export(tmp_path / "finetuned", moved=0.1)
    prepared = []

    def prepare(net):
        prepared.append(net)
        return net

    found = guidance.denoiser_of(tmp_path / "finetuned", config("neon", 0.5), tmp_path / "base", prepare)
    assert len(prepared) == 1
    for name, w in prepared[0].state_dict().items():
        expected = 1.5 * base.state_dict()[name] - 0.5 * finetuned.state_dict()[name]
        torch.testing.assert_close(w, expected, rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        torch.testing.assert_close(found(x(), SIGMA, LABELS), denoiser("edm", prepared[0])(x(), SIGMA, LABELS))


def test_guidance_moves_a_gaussians_mean_as_it_should():
    """Two Gaussians of equal width: the extrapolated denoiser is exactly that of the extrapolated mean."""

    def normal(mean):
        return lambda x, sigma, labels: (0.25 * x + sigma**2 * mean) / (0.25 + sigma**2)

    sigma = torch.tensor(1.3)
    means: dict[GuideKind, float] = {"sims": 1.5 * 0.2 - 0.5 * 0.6, "autoguidance": 0.2 + 0.5 * (0.6 - 0.2)}
    for kind, mean in means.items():
        found = guidance.combined(kind, 0.5, normal(0.6), normal(0.2))(x(), sigma, None)
        torch.testing.assert_close(found, normal(mean)(x(), sigma, None))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"shape": (1, 8, 8)}, r"samples of shape \[1, 8, 8\], not \[1, 4, 4\]"),
        ({"num_classes": 0}, "0 classes, not 3"),
    ],
)
@pytest.mark.parametrize("kind", ["autoguidance", "neon"])
def test_a_guide_for_other_samples_is_refused(tmp_path, other, message, kind):
    export(tmp_path / "own")
    export(tmp_path / "guide", **other)
    with pytest.raises(UserError, match=rf"sample\.guide=\S*guide: .*{message}"):
        guided(kind, 1.0, tmp_path / "own", tmp_path / "guide")


def test_vectors_of_another_scale_are_refused(tmp_path):
    for name, center in (("own", 0.0), ("guide", 1.0)):
        export(tmp_path / name, config=MLP, shape=(2,), center=center)
    with pytest.raises(UserError, match="decides the scale of vectors"):
        guided("sims", 1.0, tmp_path / "own", tmp_path / "guide")


def test_neon_refuses_another_network_where_guides_may_differ(tmp_path):
    export(tmp_path / "own")
    export(tmp_path / "guide", config=NetworkConfig(channels=(16,), norm_groups=4))
    assert guided("autoguidance", 1.5, tmp_path / "own", tmp_path / "guide").shape == (4, 1, 4, 4)
    with pytest.raises(UserError, match="a network of another shape"):
        guided("neon", 1.0, tmp_path / "own", tmp_path / "guide")
    export(tmp_path / "ddpm", objective="ddpm")
    assert guided("sims", 1.0, tmp_path / "own", tmp_path / "ddpm").isfinite().all()
    with pytest.raises(UserError, match="trained as ddpm, not edm"):
        guided("neon", 1.0, tmp_path / "own", tmp_path / "ddpm")


def test_neon_refuses_a_network_that_was_not_finetuned_from_the_base(tmp_path):
    for seed in (0, 1):
        export(tmp_path / str(seed), config=MLP, shape=(2,), seed=seed)
    with pytest.raises(UserError, match=r"train\.warm_start=true"):
        guided("neon", 1.0, tmp_path / "0", tmp_path / "1")


def test_what_is_no_folder_of_weights_is_refused(tmp_path):
    export(tmp_path / "own")
    with pytest.raises(UserError, match=r"sample\.guide=.*no such folder"):
        guided("sims", 1.0, tmp_path / "own", tmp_path / "missing")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a").write_text("a")
    manifest.seal(tmp_path / "other", "metrics", 1, ["a"])
    with pytest.raises(UserError, match="holds metrics: give a sealed folder of weights"):
        guided("sims", 1.0, tmp_path / "own", tmp_path / "other")
