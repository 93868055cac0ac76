"""Whole loops on a real SLURM of two virtual nodes that the suite starts: arrays, signals, kills, sweeps."""

import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import forked
import loops
import numpy as np
import pytest
import yaml
from loops import VECTORS, command, sealed_bytes

from entroloop.data.runfolder import Layout, Step
from entroloop.data.world import World
from entroloop.launcher.run import lease, runner
from entroloop.launcher.run.recipes import is_sealed
from entroloop.slurm import states
from entroloop.slurm.sbatch import site_of

pytestmark = pytest.mark.slow  # minutes on a real cluster
HERE = Path(__file__).parent
CHECKPOINTS = ("train.kimg=3.2", "train.checkpoint_kimg=0.016")  # after every batch: one is there when the kill comes
SLURM = ["slurm.gpus_per_node=0", "slurm.lead=30", "slurm.time=1h"]


def missing():
    """Why there can be no cluster here; '' where there can."""
    if os.geteuid() != 0:
        return "needs root, to start a SLURM of its own"
    tools = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name, path=PATH) is None]
    if tools:
        return f"needs {', '.join(tools)} (Debian's packages munge and slurm-wlm)"
    if subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True, check=False).returncode:
        return "needs namespaces (unshare --uts --mount)"
    return ""


PATH = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"


def free_port():
    """The first of some ports in a row that nobody uses, below the range of outgoing connections."""
    for port in range(16800, 30000, 20):
        with socket.socket() as probe:
            if all(probe.connect_ex(("127.0.0.1", port + i)) for i in range(16)):
                return port
    raise AssertionError("no free port")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    if why := missing():
        pytest.skip(why)
    base = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short: munge's socket has a longest name
    environment = {**os.environ, "SLURM_BASE": str(base), "PORT": str(free_port()), "OWNER": str(os.getpid())}
    environment["MAX_ARRAY"] = "4"  # indices 0 … 3: longer arrays must be split
    kept = {name: os.environ.get(name) for name in ("SLURM_CONF", "PATH", "OMP_NUM_THREADS")}
    try:
        started = subprocess.run(
            ["bash", HERE / "start.sh"], env=environment, capture_output=True, text=True, check=False
        )
        assert started.returncode == 0, started.stdout + started.stderr
        os.environ.update(SLURM_CONF=str(base / "slurm.conf"), PATH=PATH, OMP_NUM_THREADS="1")
        yield
    finally:
        subprocess.run(["bash", HERE / "stop.sh"], env=environment, check=False)
        shutil.rmtree(base, ignore_errors=True)
        for name, value in kept.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def tiny(folder, *overrides):
    return loops.tiny(folder, *overrides, of=VECTORS)


def tiny_file(folder, *overrides):
    return loops.tiny_file(folder, *overrides, of=VECTORS)


@functools.cache
def local(*overrides):
    """The sealed bytes of the tiny loop, run here in one process."""
    folder = Path(tempfile.mkdtemp())
    try:
        config = tiny(folder, *overrides)
        runner.run(config, World(), lambda: False)
        return sealed_bytes(config.run_folder)
    finally:
        shutil.rmtree(folder)


def slurm(*arguments):
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
    return done.stdout


def submit(path, *overrides):
    done = command("slurm", "submit", path, *overrides)
    assert done.returncode == 0, done.stderr
    return done.stdout


def jobs(run):
    found, problem = states.read(run / "slurm", site_of(run).mark)
    assert problem == ""
    return found


def submissions(run):
    return [json.loads(line) for line in (run / "slurm" / "jobs.jsonl").read_text().splitlines()]


def logs(run):
    return "\n".join(path.read_text() for path in sorted((run / "slurm" / "logs").glob("*")))


def until(condition, run, seconds=150):
    """Waits for a condition and returns its value; shows the jobs and their logs when it does not come."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"{states.table(jobs(run))}\n{logs(run)}"
        time.sleep(0.3)
    return value


def all_ended(run):
    return all(job.state not in ("queued", "running", "completing") for job in jobs(run))


def finish(run):
    until(lambda: all_ended(run), run)
    assert {job.state for job in jobs(run)} == {"finished"}, f"{states.table(jobs(run))}\n{logs(run)}"


def training(run):
    """What the lease says once training of generation 0 has saved a checkpoint."""
    layout = Layout(run)
    return any(layout.checkpoints(0).glob("images-*.pt")) and lease.read(layout.lease(Step(0, "train")))


def test_one_command_two_submitters_a_kill_and_the_bytes_of_a_local_run(tmp_path):
    """The import in an array, then the whole loop in one job, whose process is killed in the middle of training."""
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    scratch = tmp_path / "node local"
    path = tiny_file(folder, *SLURM, "slurm.import_array=2", f"slurm.scratch={scratch}", *CHECKPOINTS)
    run = folder / "runs" / "tiny"
    both = [forked.entroloop("slurm", "submit", path) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert [job["key"] for job in submissions(run)] == ["import", "import.seal", "real.encode", "run"]
    owner = until(lambda: training(run), run)
    assert owner["host"] in ("n1", "n2")
    os.kill(owner["pid"], signal.SIGKILL)
    until(lambda: "failure 1 of 3" in logs(run), run)
    finish(run)
    assert "resumed at" in logs(run)
    assert len(list(scratch.glob("entroloop-*/manifest.json"))) == 2  # a copy of each generation's training set
    assert sealed_bytes(run) == local(*CHECKPOINTS)
    assert "nothing" not in submit(path)  # a finished run has nothing left
    assert len(submissions(run)) == 4


def test_a_chain_over_drained_nodes_makes_a_lost_task_again_and_only_that(tmp_path):
    chain = ["slurm.shape=phases", "slurm.array=3", "slurm.window=5", "slurm.lines=[--exclusive]", "generations=1"]
    path, config = tiny_file(tmp_path, *SLURM, *chain), tiny(tmp_path / "runs", *SLURM, *chain)
    runner.run(config, World(), lambda: False, until=Step(0, "train"))
    run, layout = config.run_folder, Layout(config.run_folder)
    slurm("scontrol", "update", "nodename=n[1-2]", "state=drain", "reason=test")
    submit(path)
    assert [(job["key"], job["tasks"]) for job in submissions(run)] == [
        ("generation_0000.sample", [0, 1, 2]),
        ("generation_0000.sample.seal", None),
    ]
    assert {job.state for job in jobs(run)} == {"queued"}
    slurm("scancel", f"{submissions(run)[0]['id']}_1")
    slurm("scontrol", "update", "nodename=n[1-2]", "state=resume")
    until(lambda: all_ended(run), run)
    states = {(job.key, job.task): job.state for job in jobs(run)}
    assert states[("generation_0000.sample", 1)] == "cancelled"
    assert states[("generation_0000.sample.seal", None)] == "cancelled"
    shards = sorted(layout.of(Step(0, "sample")).glob("*.tar"))
    assert [path.name for path in shards] == ["shard-000000.tar", "shard-000002.tar"]
    before = [path.stat().st_mtime_ns for path in shards]
    submit(path)
    assert submissions(run)[2]["tasks"] == [1]
    until(lambda: is_sealed(layout)(Step(0, "evaluate")), run)
    finish(run)
    assert [path.stat().st_mtime_ns for path in shards] == before
    found = sealed_bytes(run)
    assert found == {name: data for name, data in local().items() if name in found}
    assert "generation_0000/metrics/manifest.json" in found
    assert {job.node for job in jobs(run) if job.key.endswith(".encode")} == {"n1", "n2"}


@pytest.mark.long
def test_a_chain_of_two_generations_ends_with_the_bytes_of_a_local_run(tmp_path):
    """All phases as jobs, in arrays longer than the cluster's MaxArraySize, submitted in a window that moves."""
    chain = ["slurm.shape=phases", "slurm.array=6", "slurm.window=9"]
    small = ["sample.shard_size=8", "data.shard_size=32"]
    path = tiny_file(tmp_path, *SLURM, *chain, *small)
    run = tmp_path / "runs" / "tiny"
    submit(path)
    until(lambda: all_ended(run) and is_sealed(Layout(run))(Step(1, "evaluate")), run, 400)
    finish(run)
    parts = [(job["key"], job["offset"], job["tasks"]) for job in submissions(run) if job["key"].endswith("0.sample")]
    assert parts == [("generation_0000.sample", 0, [0, 1, 2, 3]), ("generation_0000.sample", 4, [0, 1])]
    assert sealed_bytes(run) == local(*small)


@pytest.mark.long
def test_a_job_whose_node_is_lost_starts_again_from_its_checkpoint(tmp_path):
    """The scheduler kills and requeues it without a signal that its script could answer."""
    path = tiny_file(tmp_path, *SLURM, *CHECKPOINTS, "generations=1")
    run = tmp_path / "runs" / "tiny"
    submit(path)
    node = until(lambda: training(run), run)["host"]
    slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")  # it comes back when it registers

    def resumed():
        # SLURM drains a node on which the job starts again before its killed processes are gone ("duplicate jobid").
        if "DRAIN" in slurm("scontrol", "show", "node", node):
            slurm("scontrol", "update", f"nodename={node}", "state=resume")
            slurm("scontrol", "update", f"jobid={submissions(run)[0]['id']}", "starttime=now")
        return "resumed at" in logs(run)

    until(resumed, run)
    finish(run)
    assert "requeued: stopped" not in logs(run)
    assert sealed_bytes(run) == local(*CHECKPOINTS, "generations=1")


@pytest.mark.long
def test_the_signal_comes_before_a_real_time_limit(tmp_path):
    path = tiny_file(tmp_path, *SLURM, "slurm.time=1m", "train.kimg=4000", "generations=1")
    run = tmp_path / "runs" / "tiny"
    submit(path)
    until(lambda: "requeued: stopped by USR1: training saved" in logs(run), run)
    until(lambda: "resumed at" in logs(run), run)
    command("slurm", "cancel", run)
    until(lambda: all_ended(run), run)


@pytest.mark.long
def test_two_nodes_train_together_and_go_on_after_the_signal_before_the_time_limit(tmp_path):
    (tmp_path / "twin").mkdir()
    twin = tiny_file(tmp_path / "twin", "train.kimg=9.6", "generations=1")
    path = tiny_file(tmp_path, *SLURM, "slurm.nodes=2", "train.kimg=9.6", "generations=1")
    run = tmp_path / "runs" / "tiny"
    submit(path)
    until(lambda: training(run), run)
    slurm("scancel", "--batch", "--signal=USR1", submissions(run)[0]["id"])  # what --signal=B:USR1@lead sends
    until(lambda: "requeued: stopped by USR1: training saved" in logs(run), run)
    finish(run)
    assert "resumed at" in logs(run)
    assert "by ddp on 2 ranks" in logs(run)
    for rank in forked.ranks(2, "run", twin):
        done = rank.result()
        assert done.returncode == 0, done.stderr
    assert sealed_bytes(run) == sealed_bytes(tmp_path / "twin" / "runs" / "tiny")


@pytest.mark.parametrize("engine", ["ddp", pytest.param("zero2", marks=pytest.mark.long)])
def test_bare_srun_starts_ranks_that_train_as_those_of_torchrun_do(tmp_path, engine):
    paths = []
    for name in ("srun", "ranks"):
        (tmp_path / name).mkdir()
        paths.append(tiny_file(tmp_path / name, f"train.engine={engine}", "generations=1"))
    done = subprocess.run(
        ["srun", "-N2", "-n2", sys.executable, "-m", "entroloop.launcher", "run", paths[0]],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"by {engine} on 2 ranks" in done.stdout
    for rank in forked.ranks(2, "run", paths[1]):
        assert rank.result().returncode == 0
    runs = [path.parent / "runs" / "tiny" for path in paths]
    assert sealed_bytes(runs[0]) == sealed_bytes(runs[1])


def test_a_shell_of_salloc_is_alone(tmp_path):
    np.save(tmp_path / "f.npy", np.random.default_rng(0).normal(size=(50, 4)))
    done = subprocess.run(
        ["salloc", "-N1", "-n2", sys.executable, "-m", "entroloop.launcher", "entropy", tmp_path / "f.npy"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "n 50" in done.stdout


def test_a_task_that_waits_in_vain_says_for_whom(tmp_path):
    path = tiny_file(tmp_path)
    script = 'test "$SLURM_PROCID" = 1 && exec sleep 300; exec "$0" -m entroloop.launcher run "$1"'
    done = subprocess.run(
        ["srun", "-N1", "-n2", "--kill-on-bad-exit=1", "bash", "-c", script, sys.executable, path],
        env={**os.environ, "ENTROLOOP_JOIN_SECONDS": "2"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert re.search(r"rank 0 of 2 waited 2 s at n\d:\d+ for rank 1: see why", done.stderr), done.stderr


@pytest.mark.long
def test_a_preempted_job_saves_its_state_and_goes_on_later(tmp_path):
    path = tiny_file(tmp_path, *SLURM, "train.kimg=4000", "generations=1", "slurm.lines=[--exclusive]")
    run = tmp_path / "runs" / "tiny"
    submit(path)
    until(lambda: training(run), run)
    urgent = slurm("sbatch", "--parsable", "-p", "urgent", "-N2", "--exclusive", "-o/dev/null", "--wrap", "sleep 1")
    until(lambda: any(job.state == "queued" for job in jobs(run)), run)
    until(lambda: f"{urgent.strip()} " not in slurm("squeue", "-h", "-o", "%i "), run)
    until(lambda: "resumed at" in logs(run), run)
    shown = command("slurm", "cancel", run)
    assert shown.stdout.startswith("cancelled 1 job:")
    until(lambda: all_ended(run), run)
    assert [job.state for job in jobs(run)] in (["cancelled"], ["interrupted"])
    assert "training saved" in logs(run)


def test_a_failing_phase_stops_the_chain_and_status_says_why(tmp_path):
    path = tiny_file(tmp_path, *SLURM, "slurm.shape=phases", "generations=1")
    run = tmp_path / "runs" / "tiny"
    submit(path, "slurm.prefix=/bin/false", "slurm.retries=1")
    until(lambda: all_ended(run), run)
    shown = command("status", run)
    assert shown.stdout.startswith("tiny: failed (prepare: ended with status 1 (2 times))"), shown.stdout
    assert "log of prepare" in shown.stdout
    assert "| " in shown.stdout
    found = json.loads(command("status", run, "--json").stdout)
    assert {job["state"] for job in found["jobs"]} == {"failed", "cancelled"}
    assert "submitted prepare" in submit(path)
    until(lambda: is_sealed(Layout(run))(Step(-1, "prepare")), run)
    command("slurm", "cancel", run)
    until(lambda: all_ended(run), run)


def test_a_sweep_is_one_array_after_the_shared_work_with_a_report_at_the_end(tmp_path):
    path = tmp_path / "grid.yaml"
    grid = {"selection.strategy": ["random", "greedy"]}
    values = {**VECTORS, "folder": str(tmp_path / "runs"), "sweep": {"grid": grid}}
    path.write_text(yaml.safe_dump({**values, "slurm": {"gpus_per_node": 0, "at_once": 2}}, sort_keys=False))
    done = command("sweep", path, "--slurm")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "tiny"
    assert [(job["key"], job["tasks"]) for job in submissions(run)] == [
        ("shared.0", [0]), ("arms", [0, 1]), ("report", None),
    ]  # fmt: skip
    finish(run)
    assert (run / "report.html").stat().st_size > 10_000
    assert sealed_bytes(run / "greedy") == local()
    manifest = "generation_0000/weights/manifest.json"
    assert os.path.samefile(run / "random" / manifest, run / "greedy" / manifest)
    assert "finished" in command("sweep", path, "--slurm").stdout


def test_a_cluster_of_four_nodes_with_eight_gpus_takes_the_scripts(tmp_path):
    recipe = Path(__file__).parents[2] / "configs" / "ffhq64.yaml"
    for shape in ("generations", "phases"):
        done = command(
            "slurm", "script", recipe, f"folder={tmp_path}", f"slurm.shape={shape}", "slurm.partition=big",
            "generations=2", "slurm.nodes=4", "slurm.gpus_per_node=8",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        for number, text in enumerate(done.stdout.split("# ==== ")[1:]):
            script = tmp_path / f"{shape}-{number}.sh"
            script.write_text(text.partition("\n")[2])
            if "-%A_%a" in text:
                slurm("sbatch", "--test-only", "--array=0-3", script, "0")
            else:
                slurm("sbatch", "--test-only", script)
            key = text.partition(":")[0]
            if key == "run" or key.endswith(".train"):
                assert "#SBATCH --nodes=4\n" in text
                assert "#SBATCH --gres=gpu:8\n" in text
