"""Real DDP and DeepSpeed on two gloo ranks, started as people start them, against one process.

The losses of a step agree to rounding: the same images, noise and weights, summed in another order over two ranks. Adam
divides by the root of the second moment, which turns rounding of tiny gradients into steps of the size of the learning
rate; after 40 steps exported weights therefore agree to a few learning rates in places, and far better on average.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from loops import command, sealed_bytes, tiny_file

from entroloop.launcher.run.steps import Layout, Step
from entroloop.trainer import network

pytestmark = pytest.mark.slow  # starts dozens of processes: eight minutes on one core
REPOSITORY = Path(__file__).parents[1]
EACH_STEP = ("train.log_kimg=0.016", "generations=1", "train.more_emas.slow={halflife_kimg: 0.3, rampup: 9}")


def torchrun(path, *overrides, ranks=2, wait=True, **environment):
    arguments = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks),
        "--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1", "-m", "entroloop.launcher", "run", str(path), *overrides,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    process = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    if not wait:
        return process
    out, _ = process.communicate(timeout=240)
    return process.returncode, out


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


@pytest.mark.parametrize("engine", ["ddp", "zero1", "zero2", "zero3"])
def test_two_ranks_train_as_one_process_does(alone, tmp_path, engine):
    path = tiny_file(tmp_path)
    status, out = torchrun(path, *EACH_STEP, f"train.engine={engine}")
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
    status, out = torchrun(path, *EACH_STEP, "train.engine=zero2", "train.precision=bf16")
    assert status == 0, out
    assert "zero2 on 2 process(es) of cpu, precision bf16" in out
    layout = Layout(tmp_path / "runs" / "tiny")
    torch.testing.assert_close(losses(layout), losses(alone), rtol=5e-2, atol=5e-2)
    assert exported(layout).dtype == torch.float32
    assert (exported(layout) - exported(alone)).abs().mean() < 1e-3


def test_accumulation_changes_nothing_but_rounding(alone, tmp_path):
    path = tiny_file(tmp_path)
    assert command("run", path, *EACH_STEP, "train.micro_batch=4").returncode == 0
    layout = Layout(tmp_path / "runs" / "tiny")
    torch.testing.assert_close(losses(layout), losses(alone), rtol=2e-3, atol=2e-3)
    status, out = torchrun(path, *EACH_STEP, "train.micro_batch=4", "train.engine=zero2", "name=zero")
    assert status == 0, out
    torch.testing.assert_close(losses(Layout(tmp_path / "runs" / "zero")), losses(alone), rtol=2e-3, atol=2e-3)


def checkpoints(run):
    return {p.name for p in run.glob("generation_0000/checkpoints/images-*.pt")}


def wait_for_checkpoint(folder, process):
    while not checkpoints(folder):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


LONG = ("train.kimg=6.4", "generations=1", "train.checkpoint_kimg=0.32")


@pytest.mark.parametrize(("engine", "kimg"), [("ddp", 8), ("zero3", 2.4)])  # a step of zero3 takes five times as long
def test_signals_and_kills_of_ranks_resume_with_the_same_bytes(tmp_path, engine, kimg):
    """At random steps: a random while after a checkpoint."""
    path = tiny_file(tmp_path, *LONG, f"train.engine={engine}", f"train.kimg={kimg}")
    status, out = torchrun(path, "name=whole")
    assert status == 0, out
    run = tmp_path / "runs" / "tiny"

    process = torchrun(path, wait=False)  # SIGTERM to the launcher, as a scheduler does
    wait_for_checkpoint(run, process)
    time.sleep(random.uniform(0, 0.5))
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert json.loads((run / "state.json").read_text())["exit"] == 75, out

    for which in ("one rank", "all ranks"):
        before = checkpoints(run)
        process = torchrun(path, wait=False)
        while process.poll() is None and checkpoints(run) <= before:
            time.sleep(0.02)
        time.sleep(random.uniform(0, 0.5))
        assert process.poll() is None, process.communicate()[0]
        ranks = children(process.pid)
        for pid in ranks[:1] if which == "one rank" else ranks:
            os.kill(pid, signal.SIGKILL)
        out, _ = process.communicate(timeout=90)
        assert process.returncode != 0, out
    status, out = torchrun(path)
    assert status == 0, out
    assert "resumed at" in out
    assert sealed_bytes(run) == sealed_bytes(tmp_path / "runs" / "whole")


def children(pid):
    return [int(p) for p in open(f"/proc/{pid}/task/{pid}/children").read().split()]


def test_a_checkpoint_resumes_at_another_world_size_and_engine(tmp_path):
    path = tiny_file(tmp_path, *LONG)
    process = torchrun(path, wait=False)
    run = tmp_path / "runs" / "tiny"
    wait_for_checkpoint(run, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
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
        (("train.engine=ddp",), {}, "train.engine=ddp: this was launched as single with 1 process(es)"),
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
    status, out = torchrun(path, "train.batch=15", "name=odd")
    assert status != 0
    assert "train.batch=15 does not divide over 2 processes" in out
    assert not (tmp_path / "runs" / "odd").exists()


def accelerate_launch(name, *arguments, **environment):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"configs/accelerate/{name}.yaml"]
    return subprocess.Popen(
        [*command, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


@pytest.mark.parametrize("cpu", [["--cpu"], []])
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
    path = tiny_file(tmp_path, "generations=1")
    launched = accelerate_launch(
        "zero2", "--num_processes", 2, "--main_process_port", 0, "-m", "entroloop.launcher", "run", path,
        DS_ACCELERATOR="cpu",
    )  # fmt: skip
    out, _ = launched.communicate(timeout=240)
    assert launched.returncode == 0, out
    assert "by zero2 on 2 ranks" in out


def test_accelerate_launch_trains_on_several_machines(tmp_path):
    path = tiny_file(tmp_path, "generations=1")
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
