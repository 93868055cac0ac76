"""Every reader of a sealed file that has changed since names the file in one line."""

import json
import re
import shutil

import pytest
import typer
from exported import MLP, UNET, export
from loops import POINTS, tiny
from typer.testing import CliRunner

from entroloop.data import files
from entroloop.data.errors import UserError
from entroloop.data.features import classifier
from entroloop.data.runfolder import PREPARE, Layout, Step
from entroloop.data.store import manifest
from entroloop.data.store.blocks import load_features
from entroloop.data.world import World
from entroloop.eval.report.runs import read_run
from entroloop.launcher import __main__ as program
from entroloop.launcher import config as configuration
from entroloop.launcher.commands.verify import verify_command
from entroloop.launcher.run import runner
from entroloop.trainer import network
from entroloop.trainer.guidance import denoiser_of
from entroloop.trainer.sample_config import SampleConfig

pytestmark = pytest.mark.slow

WARM = {**POINTS, "train": {"kimg": 0.16, "batch": 16, "warm_start": True}}


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def empty(path):
    path.write_bytes(b"")


LINES = {flip: "content changed since it was sealed", cut: "bytes instead of the sealed", empty: "0 bytes instead of"}


def points(folder):
    return tiny(folder, of=WARM)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = points(tmp_path_factory.mktemp("finished"))
    runner.run(config, World(), lambda: False)
    return Layout(config.run_folder)


@pytest.fixture
def layout(finished, tmp_path):
    shutil.copytree(finished.run, tmp_path / "tiny")
    return Layout(tmp_path / "tiny")


def unsealed_again(layout, step):
    """The run as it is when `step` comes next."""
    shutil.rmtree(layout.of(step))


@pytest.mark.parametrize("damage", LINES)
@pytest.mark.parametrize(
    ("read", "step"),
    [
        pytest.param("generation_0000/weights/mlp.safetensors", Step(0, "sample"), id="weights, sampled"),
        pytest.param("generation_0001/weights/mlp.json", Step(1, "sample"), id="a network's shape"),
        pytest.param("generation_0000/weights/mlp.safetensors", Step(1, "train"), id="a warm start"),
        pytest.param("generation_0000/features/pixel-000001.npy", Step(1, "select"), id="features, selected by"),
        pytest.param("generation_0001/features/pixel-000000.npy", Step(1, "evaluate"), id="features, measured"),
        pytest.param("real/features/pixel-000000.npy", Step(1, "evaluate"), id="real features"),
        pytest.param("generation_0001/selected/shard-000000.tar", Step(1, "train"), id="the training set"),
        pytest.param("generation_0000/samples/shard-000000.tar", Step(1, "select"), id="candidates"),
        pytest.param("generation_0000/samples/shard-000001.json", Step(1, "select"), id="their provenance"),
        pytest.param("generation_0001/samples/shard-000000.tar", Step(1, "encode"), id="samples, encoded"),
    ],
)
def test_a_phase_names_a_damaged_input_and_seals_nothing(layout, read, step, damage):
    damage(layout.run / read)
    unsealed_again(layout, step)
    with pytest.raises(UserError, match=re.escape(str(layout.run / read))) as caught:
        runner.run(points(layout.run.parent), World(), lambda: False)
    assert "\n" not in str(caught.value)
    if not read.endswith(".tar"):  # of shards the damaged sample is named first
        assert LINES[damage] in str(caught.value) or read.endswith(".json")
    assert not manifest.is_sealed(layout.of(step))
    assert json.loads((layout.run / "state.json").read_text())["exit"] == 2


@pytest.mark.parametrize("damage", LINES)
@pytest.mark.parametrize(("config", "shape"), [(UNET, (1, 4, 4)), (MLP, (3,))])
def test_networks_are_checked_where_they_are_loaded(tmp_path, config, shape, damage):
    export(tmp_path, config=config, shape=shape)
    network.load(tmp_path)
    for entry in manifest.read(tmp_path).files:
        kept = (tmp_path / entry.name).read_bytes()
        damage(tmp_path / entry.name)
        with pytest.raises(UserError, match=f"{entry.name}: .*{LINES[damage]}"):
            network.load(tmp_path)
        (tmp_path / entry.name).write_bytes(kept)


class Squares:
    digest = "1"

    def __init__(self, shape, device):
        self.dim = shape[0]

    def __call__(self, samples):
        return samples**2


def test_an_encoder_that_changed_since_the_real_data_were_encoded_is_refused(tmp_path, monkeypatch):
    own = "test_damage:Squares"
    config = configuration.compose(
        WARM, [f"folder={tmp_path}", f"selection.encoder={own}", f"evaluation.encoders=[{own}]"], "tiny"
    )
    runner.run(config, World(), lambda: False, until=Step(0, "sample"))
    monkeypatch.setattr(Squares, "digest", "2")
    with pytest.raises(UserError, match=f"encoder {own}: its digest is 2, .* is 1, so that they do not compare"):
        runner.run(config, World(), lambda: False)
    assert not manifest.is_sealed(Layout(config.run_folder).of(Step(0, "encode")))


def test_the_guide_is_checked(tmp_path):
    own, guide = tmp_path / "own", tmp_path / "guide"
    for folder in (own, guide):
        export(folder, config=MLP, shape=(3,), num_classes=0)
    flip(guide / "mlp.safetensors")
    config = SampleConfig(guide=str(guide), guide_weight=1.5)
    with pytest.raises(UserError, match=r"guide/mlp\.safetensors: content changed"):
        denoiser_of(own, config, guide, lambda net: net)


def test_what_is_no_network_is_named(tmp_path, finished):
    with pytest.raises(UserError, match="not sealed"):
        network.load(tmp_path)
    with pytest.raises(UserError, match="features: holds no exported network"):
        network.load(finished.of(PREPARE))
    with pytest.raises(UserError, match="ema_slow: holds no exported network"):
        network.load(finished.of(Step(0, "train")), "slow")


def test_a_row_of_measures_that_was_changed_is_named(layout):
    path = layout.of(Step(1, "evaluate")) / "metrics.jsonl"
    row = json.loads(path.read_text())
    row["measures"]["pixel"]["frechet_distance"] += 1
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"generation_0001/metrics/metrics\.jsonl: .*sealed"):
        read_run(layout.run)


def changed_number(path, *, resealed):
    """Changes the scale of the vectors in a manifest of weights; `resealed`: as if it had been sealed with it."""
    value = json.loads(path.read_text())
    value["about"]["scale"]["center"][0] += 1
    if resealed:
        del value["digest"]
        value["digest"] = files.digest(value)
    path.write_bytes(files.json_bytes(value))


def test_a_manifest_with_a_changed_number_is_damaged(layout):
    path = layout.of(Step(1, "train")) / manifest.MANIFEST
    changed_number(path, resealed=False)
    unsealed_again(layout, Step(1, "sample"))
    with pytest.raises(UserError, match=f"{path}: damaged manifest"):
        runner.run(points(layout.run.parent), World(), lambda: False)


def verified(folder):
    """Exit status and problems that `verify` finds."""
    app = typer.Typer()
    app.command()(verify_command)
    done = CliRunner().invoke(app, [str(folder), "--json"])
    return done.exit_code, json.loads(done.stdout)["problems"]


def test_verify_follows_every_seal_to_what_it_was_made_from(finished, layout):
    assert verified(finished.run) == (0, [])
    path = layout.of(Step(0, "train")) / manifest.MANIFEST
    changed_number(path, resealed=True)
    code, problems = verified(layout.run)
    assert code == 2
    assert f"{path}: changed since {layout.of(Step(0, 'sample'))} was made from it" in problems
    assert all(line.startswith(str(path)) for line in problems)
    code, problems = verified(layout.of(Step(0, "sample")).parent)
    assert problems[0].startswith(str(path))
    shutil.rmtree(path.parent)
    assert f"{path.parent}: not sealed, but {layout.of(Step(0, 'sample'))} was made from it" in verified(layout.run)[1]


@pytest.mark.parametrize("file", ["generation_0000/weights/manifest.json", "config.yaml", "real/features/removed.json"])
def test_verify_goes_on_after_a_file_that_cannot_be_read(layout, file):
    (layout.of(PREPARE) / manifest.REMOVED).write_bytes(files.json_bytes({"removed": []}))
    path = layout.run / file
    path.write_text("{" + path.read_text())
    flip(layout.of(Step(1, "sample")) / "shard-000000.tar")
    code, problems = verified(layout.run)
    assert code == 2
    assert sum(line.startswith(f"{path}: damaged") for line in problems) == 1
    assert any("samples/shard-000000.tar: content changed" in line for line in problems)
    assert not any("\n" in line for line in problems)


def test_a_run_whose_configuration_is_damaged_is_refused_in_one_line(layout):
    path = layout.config
    path.write_text("{" + path.read_text())
    with pytest.raises(UserError, match=f"{path}: damaged: restore it, or start again"):
        runner.run(points(layout.run.parent), World(), lambda: False)


def test_verify_names_an_outside_data_set_that_is_another_now(tmp_path, finished):
    source = finished.images
    shutil.copytree(source, tmp_path / "set")
    config = configuration.compose(WARM, [f"folder={tmp_path}", f"data.source={tmp_path / 'set'}"], "tiny")
    runner.run(config, World(), lambda: False, until=Step(0, "select"))
    assert verified(config.run_folder) == (0, [])
    shutil.rmtree(tmp_path / "set")
    assert verified(config.run_folder) == (0, [])  # it is not here
    shutil.copytree(finished.of(Step(0, "sample")), tmp_path / "set")
    assert "set/manifest.json: changed since" in verified(config.run_folder)[1][0]


def test_an_end_of_file_is_a_failure_and_no_request_to_stop(tmp_path, monkeypatch):
    def damaged(*args, **options):
        raise EOFError("No data left in file")

    monkeypatch.setattr(runner, "run", damaged)
    path = tmp_path / "points.yaml"
    path.write_bytes(configuration.dump(points(tmp_path)))
    with pytest.raises(EOFError):
        program.main(["run", str(path)])


def test_a_block_that_was_sealed_empty_is_named(layout):
    folder = layout.of(PREPARE)
    path = folder / "pixel-000000.npy"
    path.write_bytes(b"")
    sealed = manifest.read(folder)
    (folder / manifest.MANIFEST).unlink()
    manifest.seal(folder, "features", sealed.count, [e.name for e in sealed.files], about=sealed.about)
    with pytest.raises(UserError, match=f"{path}: damaged feature block"):
        load_features(folder, "pixel")


def test_a_classifier_is_checked(tmp_path):
    classifier.save(tmp_path, classifier.Classifier((3,), 2))
    classifier.load(tmp_path)
    flip(tmp_path / classifier.WEIGHTS)
    with pytest.raises(UserError, match="content changed"):
        classifier.load(tmp_path)
