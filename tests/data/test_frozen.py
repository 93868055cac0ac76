"""Pretrained encoders with random weights in the published file formats, against the libraries that define them.

torch-fidelity and torchvision may be missing, because their builds do not fit every build of torch. The tests then use
numbers that were recorded with torch-fidelity 0.4.0 and torchvision 0.28.0 on the same weights and images.
"""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from inception_weights import fill
from loops import tiny_file
from PIL import Image
from transformers import Dinov2Config, Dinov2Model
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from entroloop.data import files
from entroloop.data.catalogue import ENCODERS
from entroloop.data.errors import UserError
from entroloop.data.features import dinov2, frozen, inception
from entroloop.data.features import encoder as encoders
from entroloop.data.features.inception_network import FID, TORCHVISION, Form, network
from entroloop.data.features.weights import VARIABLE
from entroloop.data.store.blocks import load_features
from entroloop.launcher import __main__ as launcher

CPU = torch.device("cpu")
FROZEN = [name for name in ENCODERS.built_in if name not in ("pixel", "classifier")]
IN_BATCHES = frozen.in_batches
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
# Every 256th feature of IMAGES.
RECORDED = {
    "inception": [
        [1.360200, 0.260854, 10.732914, 1.179328, 4.700324, 0.089067, 3.599106, 2.499805],
        [1.255132, 0.313760, 10.437162, 1.088862, 4.641025, 0.087465, 3.522727, 2.449179],
        [1.250585, 0.406159, 10.462221, 1.079887, 4.497133, 0.107253, 3.348808, 2.478709],
    ],
    "inception-paper": [
        [1.141490, 0.357008, 10.349322, 1.234832, 4.612761, 0.117751, 3.422289, 2.440265],
        [1.083486, 0.361720, 10.108434, 1.140025, 4.406260, 0.121761, 3.274231, 2.376898],
        [1.087375, 0.512094, 10.097651, 1.160903, 4.342342, 0.135606, 3.252676, 2.389227],
    ],
}


def optional(name: str):
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"{name} cannot be imported: {error}")


def inception_state(form: Form) -> dict[str, torch.Tensor]:
    shapes = {k: v.shape for k, v in network(form).state_dict().items() if not k.endswith("num_batches_tracked")}
    return fill({**shapes, "fc.weight": (form.classes, 2048), "fc.bias": (form.classes,)})


def save_dinov2(folder: Path, hidden: int, layers: int, image_size: int = 224) -> None:
    config = Dinov2Config(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=hidden // 64, image_size=image_size,
        patch_size=14,
    )  # fmt: skip
    torch.manual_seed(hidden)
    model = Dinov2Model(config)
    with torch.no_grad():
        model.embeddings.position_embeddings.normal_()
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A folder with weights of every encoder."""
    folder: Path = tmp_path_factory.mktemp("weights")
    torch.save(inception_state(FID), folder / inception.STATES[0])
    aux = {"AuxLogits.fc.weight": torch.zeros(2, 2), "Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(1)}
    torch.save({**inception_state(TORCHVISION), **aux}, folder / inception.PAPER_STATE)
    save_dinov2(folder / "dinov2-small", 384, 2)
    save_dinov2(folder / "dinov2-large", 1024, 1)
    return folder


@pytest.fixture(autouse=True)
def _weights_folder(weights, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(weights))


def batches_of(size: int, monkeypatch) -> None:
    monkeypatch.setattr(
        frozen, "in_batches", lambda samples, forward, dim, _, *rest: IN_BATCHES(samples, forward, dim, size, *rest)
    )


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    """Batches are padded to a fixed size: here to no more than the images that most tests encode."""
    batches_of(len(IMAGES), monkeypatch)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """An empty folder of weights, and an empty cache of the hub."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "weights"))
    folder: Path = tmp_path / "weights"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", ["inception", "inception-paper"])
def test_features_are_those_recorded_with_the_libraries(name):
    encoder = encoders.load_encoder(name, (3, 32, 32))
    features = encoder(IMAGES)
    assert features.shape == (3, encoder.dim) == (3, ENCODERS.facts(name).dim)
    assert features.dtype == np.float32
    assert np.allclose(features[:, ::256], RECORDED[name], atol=2e-4)


def test_inception_is_torch_fidelitys_network(weights):
    optional("torch_fidelity")
    from torchmetrics.image.fid import NoTrainInceptionV3

    net = NoTrainInceptionV3("x", ["2048"], str(weights / inception.STATES[0]), antialias=False)
    with torch.inference_mode():
        want = net(torch.from_numpy(IMAGES)).reshape(3, -1).numpy()
    assert np.allclose(encoders.load_encoder("inception", (3, 32, 32))(IMAGES), want, atol=1e-5)


def test_paper_inception_is_torchvisions_network():
    optional("torchvision")
    from torchvision import models, transforms

    net = models.inception_v3(weights=None, transform_input=False, init_weights=False).eval()
    net.load_state_dict(inception_state(TORCHVISION), strict=False)
    net.fc = torch.nn.Identity()
    scale = transforms.Normalize([0.5] * 3, [0.5] * 3)
    transform = transforms.Compose([transforms.Resize((299, 299)), transforms.ToTensor(), scale])
    with torch.inference_mode():
        want = net(torch.stack([transform(Image.fromarray(x.transpose(1, 2, 0))) for x in IMAGES])).numpy()
    assert np.allclose(encoders.load_encoder("inception-paper", (3, 32, 32))(IMAGES), want, atol=2e-5)


def test_tf1_resize_of_two_by_two():
    """TensorFlow 1's resize_bilinear of [[1, 2], [3, 4]] to 4 x 4: corners not aligned, pixels not centred."""
    want = [[1, 1.5, 2, 2], [2, 2.5, 3, 3], [3, 3.5, 4, 4], [3, 3.5, 4, 4]]
    got = inception.tf1_resize(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), 4)
    assert torch.equal(got[0, 0], torch.tensor(want))


@pytest.mark.parametrize("shape", [(32, 32), (8, 13), (299, 299), (400, 310), (1, 1)])
def test_tf1_resize_is_its_definition_in_float64(shape):
    """out[i, j] = bilinear of the image at (i H / 299, j W / 299), beyond the last pixel that pixel again."""
    image = np.random.default_rng(1).integers(0, 256, shape).astype(np.float64)
    H, W = shape
    y, x = np.arange(299) * H / 299, np.arange(299) * W / 299
    y0, x0 = np.floor(y).astype(int), np.floor(x).astype(int)
    y1, x1 = np.minimum(y0 + 1, H - 1), np.minimum(x0 + 1, W - 1)
    dy, dx = (y - y0)[:, None], (x - x0)[None]
    upper = image[np.ix_(y0, x0)] * (1 - dx) + image[np.ix_(y0, x1)] * dx
    lower = image[np.ix_(y1, x0)] * (1 - dx) + image[np.ix_(y1, x1)] * dx
    got = inception.tf1_resize(torch.from_numpy(image).float()[None, None], 299)[0, 0].double().numpy()
    # Positions are float32, as in TensorFlow: up to 400 with 24 bits, times differences up to 255.
    assert np.abs(got - (upper * (1 - dy) + lower * dy)).max() < 400 * 2**-23 * 255


class Script(torch.nn.Module):
    """Called like NVIDIA's file, which resizes and scales inside: the traced network behind its preprocessing."""

    def __init__(self, *layers: torch.nn.Module) -> None:
        super().__init__()
        body = torch.nn.Sequential(*layers).eval()
        self.layers = torch.jit.trace(body, torch.zeros(1, 3, 32, 32, dtype=torch.uint8), check_trace=False)

    def forward(
        self, img: torch.Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> torch.Tensor:
        features: torch.Tensor = self.layers(img)
        return features if return_features else features[:, :8]


class Prepare(torch.nn.Module):
    """Resizes 32 x 32 by products with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = inception.tf1_resize(torch.eye(32).reshape(32, 1, 32, 1), 299)[:, 0, :, 0].T

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.weights @ x.float() @ self.weights.T - 128) / 128


class Keep(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, : self.dim].float()


@pytest.mark.slow
def test_nvidias_script_comes_first_and_is_called_for_features(weights, elsewhere):
    shutil.copy(weights / inception.STATES[0], elsewhere)
    other = encoders.load_encoder("inception", (3, 32, 32))
    net = network(FID)
    net.load_state_dict({k: v for k, v in inception_state(FID).items() if not k.startswith("fc.")}, strict=False)
    torch.jit.script(Script(Prepare(), net)).save(str(elsewhere / inception.SCRIPT))
    encoder = encoders.load_encoder("inception", (3, 32, 32))
    assert np.allclose(encoder(IMAGES)[:, ::256], RECORDED["inception"], atol=2e-4)
    assert encoder.digest != other.digest
    torch.jit.script(Script(Keep(7))).save(str(elsewhere / inception.SCRIPT))
    with pytest.raises(UserError, match=r"inception-2015-12-05.pt: is not the FID .* are \[1, 7\], not \[1, 2048\]"):
        encoders.load_encoder("inception", (3, 32, 32))


class Plain(torch.nn.Module):
    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return img


@pytest.mark.parametrize(("name", "layers"), [("dinov2-small", 2), ("dinov2-large", 1)])
def test_dinov2_is_transformers_class_token(weights, name, layers):
    encoder = encoders.load_encoder(name, (3, 32, 32))
    model = Dinov2Model.from_pretrained(weights / name).eval()
    assert model.config.num_hidden_layers == layers
    prepare = BitImageProcessorPil(
        size={"height": 224, "width": 224}, do_center_crop=False,
        image_mean=list(dinov2.MEAN), image_std=list(dinov2.STD),
    )  # fmt: skip
    pixels = prepare([x.transpose(1, 2, 0) for x in IMAGES], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        want = model(pixels).pooler_output.numpy()
    got = encoder(IMAGES)
    assert got.shape == (3, ENCODERS.facts(name).dim)
    assert np.abs(got - want).max() < 2e-5 * np.abs(want).max()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 40, 27)])
@pytest.mark.parametrize("image_size", [224, 518])
def test_the_papers_dinov2_is_transformers_own_processor_and_model(elsewhere, shape, image_size):
    """The settings of facebook/dinov2-small's preprocessor_config.json, whose published model is of 518 pixels."""
    save_dinov2(elsewhere / "dinov2-small", 384, 2, image_size=image_size)
    prepare = BitImageProcessorPil(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, resample=Image.Resampling.BICUBIC,
        image_mean=list(dinov2.MEAN), image_std=list(dinov2.STD),
    )  # fmt: skip
    images = np.random.default_rng(1).integers(0, 256, (3, *shape), dtype=np.uint8)
    pixels = prepare([x.transpose(1, 2, 0) for x in images], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (3, 3, 224, 224)
    with torch.inference_mode():
        want = Dinov2Model.from_pretrained(elsewhere / "dinov2-small").eval()(pixels).last_hidden_state[:, 0].numpy()
    got = encoders.load_encoder("dinov2-paper", shape)(images)
    assert np.abs(got - want).max() < 2e-5 * np.abs(want).max()
    other = encoders.load_encoder("dinov2-small", shape)(images)
    assert np.abs(other - want).max() > 1e-3 * np.abs(want).max()


def cubic(t: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.75."""
    t, a = np.abs(t), -0.75
    near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * (t**3 - 5 * t**2 + 8 * t - 4)
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


def test_position_embeddings_are_resampled_as_by_metas_code():
    """37 x 37 -> 16 x 16 with the step 37 / 16.1, by the definition of bicubic interpolation in float64."""
    positions = torch.randn(1, 1 + 37 * 37, 4, generator=torch.Generator().manual_seed(0))
    at = (np.arange(16) + 0.5) * 37 / 16.1 - 0.5
    mix = np.zeros((16, 37))
    for i, x in enumerate(at):
        for j in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
            mix[i, np.clip(j, 0, 36)] += cubic(x - np.float64(j))
    grid = positions[0, 1:].double().numpy().reshape(37, 37, 4)
    want = np.einsum("ia,jb,abd->ijd", mix, mix, grid).reshape(256, 4)
    got = dinov2.resample_positions(positions)
    assert got.shape == (1, 257, 4)
    assert torch.equal(got[:, 0], positions[:, 0])
    assert np.abs(got[0, 1:].numpy() - want).max() < 1e-5
    same = positions[:, :257]
    assert dinov2.resample_positions(same) is same


def test_published_resolution_of_518_loads(elsewhere):
    save_dinov2(elsewhere / "dinov2-small", 384, 1, image_size=518)
    assert np.isfinite(encoders.load_encoder("dinov2-small", (3, 32, 32))(IMAGES[:1])).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inception", "inception-paper", "dinov2-small"])
def test_features_do_not_depend_on_cuts_and_grey_is_repeated(name, monkeypatch):
    batches_of(2, monkeypatch)
    colour, grey = encoders.load_encoder(name, (3, 8, 8)), encoders.load_encoder(name, (1, 8, 8))
    images = np.random.default_rng(2).integers(0, 256, (3, 1, 8, 8), dtype=np.uint8)
    whole = grey(images)
    assert np.array_equal(np.concatenate([grey(images[:1]), grey(images[1:])]), whole)
    assert np.array_equal(colour(images[2:].repeat(3, axis=1)), whole[2:])
    assert grey(images[:0]).shape == (0, grey.dim)
    assert grey.digest == colour.digest


@pytest.mark.slow
def test_digests_follow_the_weights_and_the_name(weights, elsewhere):
    found = {name: encoders.load_encoder(name, (3, 8, 8)).digest for name in _all(weights, elsewhere)}
    assert len(set(found.values())) == 5
    state = inception_state(FID)
    state["Conv2d_1a_3x3.bn.bias"][0] += 1
    torch.save(state, elsewhere / inception.STATES[0])
    save_dinov2(elsewhere / "dinov2-small", 384, 1)
    again = {name: encoders.load_encoder(name, (3, 8, 8)).digest for name in found}
    assert {name for name in found if again[name] != found[name]} == {
        "inception",
        "dinov2-small",
        "dinov2-paper",
    }


def _all(weights: Path, elsewhere: Path) -> list[str]:
    shutil.copytree(weights, elsewhere, dirs_exist_ok=True)
    return FROZEN


@pytest.mark.parametrize("name", FROZEN)
def test_the_weights_hashes_are_those_of_the_files_and_the_digest_stays(name, weights):
    """Sealed features are found by their digest, whose form must not change."""
    names = {"inception": [inception.STATES[0]], "inception-paper": [inception.PAPER_STATE]}.get(name, dinov2.PARTS)
    folder = weights if name.startswith("inception") else weights / name.replace("paper", "small")
    found = {part: files.sha256(folder / part) for part in names}
    encoder = encoders.load_encoder(name, (3, 8, 8))
    assert encoders.weights_of(encoder) == found
    in_digest = {name: next(iter(found.values()))} if name.startswith("inception") else found
    assert encoder.digest == files.digest({"encoder": name, "version": 1, "weights": in_digest})


def status(arguments: list[str]) -> object:
    with pytest.raises(SystemExit) as caught:
        launcher.main(arguments)
    return caught.value.code


def refusal(name: str, shape: tuple[int, ...] = (3, 32, 32)) -> str:
    with pytest.raises(UserError) as caught:
        encoders.load_encoder(name, shape)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", FROZEN)
def test_missing_weights_say_what_to_put_where(name, elsewhere):
    wanted = {
        "inception": "inception-2015-12-05.pt or pt_inception-2015-12-05-6726825d.pth",
        "inception-paper": "inception_v3_google-0cc3c7bd.pth",
    }.get(name, "config.json and model.safetensors")
    message = refusal(name)
    assert wanted in message
    assert str(elsewhere) in message
    assert "https://" in message


@pytest.mark.parametrize("name", ["inception", "dinov2-small"])
def test_a_file_in_the_place_of_the_weights_folder_is_named(name, weights, monkeypatch):
    file = weights / inception.STATES[0]
    monkeypatch.setenv(VARIABLE, str(file))
    assert refusal(name) == f"{VARIABLE}={file}: is not a folder: name the folder that contains the weights"


def test_damaged_and_foreign_inception_files_are_named(weights, elsewhere):
    path = elsewhere / inception.STATES[0]
    path.write_bytes((weights / path.name).read_bytes()[:100_000])
    assert refusal("inception").startswith(f"{path}: cannot be read as a PyTorch state dict")
    shutil.copy(weights / inception.PAPER_STATE, path)
    assert "has unknown AuxLogits.fc.weight; has other shapes: fc.weight is [1000, 2048], not" in refusal("inception")
    shutil.copy(weights / inception.STATES[0], elsewhere / inception.PAPER_STATE)
    assert "does not hold weights of torchvision's Inception-v3" in refusal("inception-paper")
    state = inception_state(FID)
    del state["Mixed_6c.branch7x7_2.conv.weight"]
    torch.save(state, path)
    assert "lacks Mixed_6c.branch7x7_2.conv.weight" in refusal("inception")
    torch.save([1, 2], path)
    assert "is not a PyTorch state dict" in refusal("inception")
    script = elsewhere / inception.SCRIPT
    script.write_bytes(b"nothing")
    assert refusal("inception").startswith(f"{script}: cannot be read as TorchScript")
    torch.jit.script(Plain()).save(str(script))
    assert "cannot be called with return_features" in refusal("inception")


def test_damaged_and_foreign_dinov2_folders_are_named(weights, elsewhere):
    folder = elsewhere / "dinov2-small"
    shutil.copytree(weights / "dinov2-large", folder)
    assert "config.json: is dinov2 with 1024 features and patches of 14, not dinov2 with 384" in refusal("dinov2-small")
    shutil.copy(weights / "dinov2-small" / "config.json", folder)
    assert "model.safetensors: lacks weights of DINOv2 or has other shapes: " in refusal("dinov2-small")
    tensors = folder / "model.safetensors"
    tensors.write_bytes((weights / "dinov2-small" / tensors.name).read_bytes()[:5000])
    assert refusal("dinov2-small").startswith(f"{tensors}: cannot be read as weights of DINOv2")
    (folder / "config.json").write_text("{")
    assert refusal("dinov2-small").startswith(f"{folder / 'config.json'}: cannot be read as")
    tensors.unlink()
    assert "lacks model.safetensors" in refusal("dinov2-small")


def test_a_dinov2_file_that_lacks_a_tensor_is_refused(weights, elsewhere):
    from safetensors.torch import load_file, save_file

    shutil.copytree(weights / "dinov2-small", elsewhere / "dinov2-small")
    path = elsewhere / "dinov2-small" / "model.safetensors"
    tensors = load_file(path)
    del tensors["encoder.layer.1.mlp.fc1.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    assert "encoder.layer.1.mlp.fc1.weight" in refusal("dinov2-small")


def test_dinov2_is_found_in_the_hubs_cache_without_a_network(weights, elsewhere, monkeypatch):
    repository = elsewhere.parent / "hub" / "models--facebook--dinov2-small"
    shutil.copytree(weights / "dinov2-small", repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")

    def refuse(*arguments, **named):
        raise AssertionError("asked the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    cached = encoders.load_encoder("dinov2-small", (3, 32, 32))
    monkeypatch.setenv(VARIABLE, str(weights))
    assert cached.digest == encoders.load_encoder("dinov2-small", (3, 32, 32)).digest


@pytest.mark.parametrize("name", FROZEN)
def test_vectors_and_other_channels_are_refused(name):
    assert f"encoder {name} takes images, but these samples are vectors of 5 numbers" in refusal(name, (5,))
    assert f"encoder {name} takes images of 1 or 3 channels, not 4" in refusal(name, (4, 8, 8))


def test_without_transformers_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'entroloop[encoders]'" in refusal("dinov2-small")


@pytest.mark.slow
def test_importing_the_encoders_imports_no_library_of_networks():
    code = "import sys, entroloop.data.features.encoder; print({'transformers', 'huggingface_hub'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.slow
def test_measure_calls_the_distance_by_its_name(weights, tmp_path, capsys):
    rng = np.random.default_rng(3)
    for name in ("generated", "training"):
        np.save(tmp_path / f"{name}.npy", rng.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8))
    paths = [str(tmp_path / f"{name}.npy") for name in ("generated", "training")]
    assert status(["measure", *paths, "--encoder", "inception"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0].startswith("FID ")
    sha256 = files.sha256(weights / inception.STATES[0])
    assert f"; weights {inception.STATES[0]} SHA-256 {sha256[:16]}…; resize TF1 bilinear to 299 x 299; k " in text
    assert status(["measure", *paths, "--encoder", "dinov2-large", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["context"]["encoder_digest"] == encoders.load_encoder("dinov2-large", (3, 16, 16)).digest
    assert row["context"]["encoder_resize"] == "Pillow bicubic to 224 x 224"
    assert row["context"]["encoder_weights"] == {
        part: files.sha256(weights / "dinov2-large" / part) for part in dinov2.PARTS
    }


@pytest.mark.slow
def test_a_loop_selects_and_measures_in_their_features(tmp_path):
    overrides = ("selection.encoder=dinov2-small", "evaluation.encoders=[dinov2-small]", "data.heldout=8")
    path = tiny_file(tmp_path, *overrides, "data.size=8", "data.limit=24", "generations=2", "train.kimg=0.032")
    assert status(["run", str(path)]) == 0
    run = tmp_path / "runs" / "tiny"
    rows = [json.loads(x) for x in (run / "generation_0001" / "metrics" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(rows[-1]["measures"]["dinov2-small"]["frechet_distance"])
    digest = encoders.load_encoder("dinov2-small", (1, 8, 8)).digest
    assert rows[-1]["context"]["encoders"]["dinov2-small"]["digest"] == digest
    assert rows[-1]["context"]["encoders"]["dinov2-small"]["resize"] == "Pillow bicubic to 224 x 224"
    assert load_features(run / "generation_0001" / "features", "dinov2-small").shape[1] == 384


def test_images_are_resized_alike_by_any_number_of_threads(monkeypatch):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (9, 3, 12, 16), dtype=np.uint8))
    found = []
    for count in (1, 4):
        monkeypatch.setattr(frozen, "resizing_threads", lambda count=count: count)
        found.append(frozen.pil_resize(images, (20, 24), Image.Resampling.BICUBIC))
    one = Image.fromarray(images[8].permute(1, 2, 0).numpy()).resize((24, 20), Image.Resampling.BICUBIC)
    assert torch.equal(found[0], found[1])
    assert np.array_equal(found[1][8].permute(1, 2, 0), np.asarray(one))
