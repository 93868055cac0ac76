"""Real DDP and DeepSpeed on two gloo ranks against one process. Only tests of a launcher start them by that launcher.

The losses of a step agree to rounding, because two ranks sum the same images, noise and weights in another order. Adam
divides by the root of the second moment, which turns rounding of tiny gradients into steps of the size of the learning
rate. After 40 steps exported weights therefore agree to a few learning rates in places, and far better on average.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import forked
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from loops import VECTORS, command, sealed_bytes, tiny_file

from entroloop.data.runfolder import Layout, Step
from entroloop.trainer import network
from entroloop.trainer.engines.zero import load_extension

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
EACH_STEP = (
    "train.kimg=0.64",
    "train.log_kimg=0.016",
    "generations=1",
    "train.more_emas.slow={halflife_kimg: 0.3, rampup: 9}",
)


def torchrun(path, *overrides):
    arguments = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1", "-m", "entroloop.launcher", "run", str(path), *overrides,
    ]  # fmt: skip
    return subprocess.Popen(
        arguments, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip


def two_ranks(path, *overrides):
    return forked.ranks(2, "run", path, *overrides, merged=True)


def ended(ranks):
    """The exit status of all ranks, 0 where all are 0, and what rank 0 wrote."""
    outs = [rank.communicate(timeout=240)[0] for rank in ranks]
    return max((rank.returncode for rank in ranks), key=abs), outs[0]


def losses(layout):
    lines = map(json.loads, layout.stats(0).read_text().splitlines())
    return torch.tensor([line["loss"] for line in lines if "loss" in line])


def exported(layout, average=""):
    found = network.load(layout.of(Step(0, "train")), average)
    return torch.cat([p.flatten() for p in found.parameters()])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    path = tiny_file(folder)
    assert command("run", path, *EACH_STEP).returncode == 0
    return Layout(folder / "runs" / "tiny")


@pytest.mark.parametrize(
    "engine",
    ["ddp", pytest.param("zero1", marks=pytest.mark.long), "zero2", pytest.param("zero3", marks=pytest.mark.long)],
)
def test_two_ranks_train_as_one_process_does(alone, tmp_path, engine):
    path = tiny_file(tmp_path)
    status, out = ended(two_ranks(path, *EACH_STEP, f"train.engine={engine}"))
    assert status == 0, out
    layout = Layout(tmp_path / "runs" / "tiny")
    assert f"by {engine} on 2 ranks" in out
    assert len(losses(layout)) == len(losses(alone)) == 40
    torch.testing.assert_close(losses(layout), losses(alone), rtol=2e-3, atol=2e-3)
    for average in ("", "slow"):
        difference = (exported(layout, average) - exported(alone, average)).abs()
        assert difference.max() < 5e-3  # a few learning rates of 1e-3
        assert difference.mean() < 2e-5
    assert (exported(layout, "slow") - exported(layout)).abs().mean() > 1e-3


def test_zero_in_half_precision_trains_as_float32_does_but_for_8_bits_of_mantissa(alone, tmp_path):
    path = tiny_file(tmp_path)
    status, out = ended(two_ranks(path, *EACH_STEP, "train.engine=zero2", "train.precision=bf16"))
    assert status == 0, out
    assert "zero2 on 2 processes of cpu, precision bf16" in out
    layout = Layout(tmp_path / "runs" / "tiny")
    torch.testing.assert_close(losses(layout), losses(alone), rtol=5e-2, atol=5e-2)
    assert exported(layout).dtype == torch.float32
    assert (exported(layout) - exported(alone)).abs().mean() < 1e-3


def test_accumulation_changes_nothing_but_rounding(alone, tmp_path):
    path = tiny_file(tmp_path)
    assert command("run", path, *EACH_STEP, "train.micro_batch=4").returncode == 0
    layout = Layout(tmp_path / "runs" / "tiny")
    torch.testing.assert_close(losses(layout), losses(alone), rtol=2e-3, atol=2e-3)
    status, out = ended(two_ranks(path, *EACH_STEP, "train.micro_batch=4", "train.engine=zero2", "name=zero"))
    assert status == 0, out
    torch.testing.assert_close(losses(Layout(tmp_path / "runs" / "zero")), losses(alone), rtol=2e-3, atol=2e-3)


def checkpoints(run):
    return {p.name for p in run.glob("generation_0000/checkpoints/images-*.pt")}


def wait_for_checkpoint(folder, process, before=frozenset()):
    while checkpoints(folder) <= before:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


LONG = ("train.kimg=6.4", "generations=1", "train.checkpoint_kimg=0.32")


@pytest.mark.parametrize(
    ("engine", "kimg"), [("ddp", 8), pytest.param("zero3", 3.2, marks=pytest.mark.long)]
)  # a step of zero3 takes longer
def test_signals_and_kills_of_ranks_resume_with_the_same_bytes(tmp_path, engine, kimg):
    """At random steps: a random while after a checkpoint."""
    path = tiny_file(tmp_path, *LONG, f"train.engine={engine}", f"train.kimg={kimg}", of=VECTORS)
    status, out = ended(two_ranks(path, "name=whole"))
    assert status == 0, out
    run = tmp_path / "runs" / "tiny"
    for which in ("signal", "one rank", "all ranks"):
        before = checkpoints(run)
        ranks = two_ranks(path)
        wait_for_checkpoint(run, ranks[0], before)
        time.sleep(random.uniform(0, 0.1))
        assert ranks[0].poll() is None, ranks[0].communicate()[0]
        if which == "all ranks":
            for rank in ranks:
                rank.kill()
        else:
            if which == "one rank":
                ranks[0].kill()
            for rank in ranks:  # as a launcher does, with the signal that it got or when a rank has died
                rank.terminate()
        status, out = ended(ranks)
        assert status != 0, out
        if which == "signal":
            assert json.loads((run / "state.json").read_text())["exit"] == 75, out
    status, out = ended(two_ranks(path))
    assert status == 0, out
    assert "resumed at" in out
    assert sealed_bytes(run) == sealed_bytes(tmp_path / "runs" / "whole")


def test_a_checkpoint_of_torchruns_ranks_resumes_at_another_world_size_and_engine(tmp_path):
    """SIGTERM to the launcher, as a scheduler sends it."""
    path = tiny_file(tmp_path, *LONG, of=VECTORS)
    process = torchrun(path)
    run = tmp_path / "runs" / "tiny"
    wait_for_checkpoint(run, process)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert json.loads((run / "state.json").read_text())["exit"] == 75, out
    done = command("run", path)
    assert done.returncode == 0, done.stderr
    assert "saved by ddp on 2 ranks, so the last bits may differ" in done.stdout
    whole = command("run", path, "name=whole")
    assert whole.returncode == 0
    difference = exported(Layout(run)) - exported(Layout(tmp_path / "runs" / "whole"))
    assert difference.abs().mean() < 1e-3


def test_launches_that_would_run_something_else_are_refused(tmp_path):
    path = tiny_file(tmp_path)
    for overrides, environment, line in [
        (("train.engine=ddp",), {}, "train.engine=ddp: this was launched as single with 1 process"),
        (("train.engine=zero2",), {}, "train.engine=zero2: DeepSpeed needs a launcher"),
        (("train.engine=zero2",), {"ACCELERATE_USE_CPU": "true"}, "ACCELERATE_USE_CPU is set"),
        (("train.precision=fp16",), {}, "train.precision=fp16: a CPU computes no network in fp16"),
        (("train.micro_batch=5",), {}, "train.micro_batch=5 does not divide"),
    ]:
        name = f"name=n{abs(hash(overrides + tuple(environment)))}"
        refused = command("run", path, *overrides, name, **environment)
        assert refused.returncode == 2, refused.stdout + refused.stderr
        assert line in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1
    status, out = ended(two_ranks(path, "train.batch=15", "name=odd"))
    assert status != 0
    assert "train.batch=15 does not divide over 2 processes" in out
    assert not (tmp_path / "runs" / "odd").exists()


def accelerate_launch(name, *arguments, **environment):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"configs/accelerate/{name}.yaml"]
    return subprocess.Popen(
        [*command, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


@pytest.mark.parametrize("cpu", [pytest.param(["--cpu"], marks=pytest.mark.long), []])
def test_accelerate_launch_that_starts_one_process_for_two_is_refused(tmp_path, cpu):
    if not cpu and torch.cuda.is_available():
        pytest.skip("accelerate starts all processes where there is a GPU")
    launch = [sys.executable, "-m", "accelerate.commands.launch", *cpu, "--num_processes", "2"]
    done = subprocess.run(
        [*launch, "-m", "entroloop.launcher", "run", str(tiny_file(tmp_path))], capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "accelerate launch was asked for several processes and started one" in done.stderr


def test_accelerate_launch_trains_with_deepspeed(tmp_path):
    path = tiny_file(tmp_path, "generations=1", of=VECTORS)
    launched = accelerate_launch(
        "zero2", "--num_processes", 2, "--main_process_port", 0, "-m", "entroloop.launcher", "run", path,
        DS_ACCELERATOR="cpu",
    )  # fmt: skip
    out, _ = launched.communicate(timeout=240)
    assert launched.returncode == 0, out
    assert "by zero2 on 2 ranks" in out


@pytest.mark.long
def test_accelerate_launch_trains_on_several_machines(tmp_path):
    path = tiny_file(tmp_path, "generations=1", of=VECTORS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = [
        accelerate_launch(
            "ddp-multinode", "--num_machines", 2, "--num_processes", 2, "--machine_rank", rank, "--main_process_ip",
            "127.0.0.1", "--main_process_port", port, "-m", "entroloop.launcher", "run", path, "train.engine=ddp",
            ACCELERATE_USE_CPU="true",
        )
        for rank in (0, 1)
    ]  # fmt: skip
    outs = [machine.communicate(timeout=240)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outs
    assert "by ddp on 2 ranks" in outs[0]


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs/accelerate").glob("*.yaml")), ids=lambda p: p.stem)
def test_accelerate_understands_its_configurations(path):
    found = load_config_from_file(str(path))
    engine = "ddp" if found.distributed_type == "MULTI_GPU" else path.stem.split("-")[0]
    assert path.stem.split("-")[0] == engine
    assert found.num_machines == (4 if path.stem.endswith("multinode") else 1)
    assert found.num_processes == 8 * found.num_machines
    if engine != "ddp":
        deepspeed = json.loads((REPOSITORY / found.deepspeed_config["deepspeed_config_file"]).read_text())
        assert deepspeed["zero_optimization"]["stage"] == int(engine[-1])


def _starts_after_a_kill():
    """For a forked process: loads the extension, then once more as after a kill while it was compiled."""
    from deepspeed.ops.op_builder.builder import OpBuilder

    load_extension()
    for built in Path(os.environ["TORCH_EXTENSIONS_DIR"]).glob("*/*.so"):
        (built.parent / "lock").touch()
    OpBuilder._loaded_ops.clear()
    load_extension()
    assert not list(Path(os.environ["TORCH_EXTENSIONS_DIR"]).glob("*/lock"))


def test_a_start_of_zero_that_was_killed_stops_no_later_one():
    ended = forked.Forked(_starts_after_a_kill, merged=True, DS_ACCELERATOR="cpu").result(180)
    assert ended.returncode == 0, ended.stdout


def test_the_extension_is_compiled_by_the_ninja_beside_python(tmp_path, monkeypatch):
    found = []
    deepspeed = types.SimpleNamespace(build_shm_op=lambda: found.append(shutil.which("ninja")))
    for name in ("deepspeed", "deepspeed.comm", "deepspeed.comm.torch"):  # importing the real one takes seconds
        monkeypatch.setitem(sys.modules, name, deepspeed)
    for name in ("PATH", "TORCH_EXTENSIONS_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    for _ in range(2):
        load_extension()
    beside = Path(sys.executable).parent
    assert found == [str(beside / "ninja")] * 2
    assert os.get_exec_path() == [str(beside), str(tmp_path)]
