"""Scripts, plans and job states without a cluster. The scripts really run, with stand-ins for srun and scontrol."""

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loops import command, tiny, tiny_file

from entroloop.data.errors import UserError
from entroloop.data.jobs import Job
from entroloop.launcher.jobs import jobs_of
from entroloop.slurm import client, states
from entroloop.slurm.client import Entry
from entroloop.slurm.config import Resources, SlurmConfig, seconds
from entroloop.slurm.sbatch import Site, array_option, chunks, render, sbatch_time
from entroloop.slurm.submit import check_python, plan

RECORDED = Path(__file__).parent / "recorded"
LAB = Site("ffhq 64", Path("/scratch/lab/it's mine/ffhq 64"), Path("/home/ann/entroloop"), "0123456789ab", threads=4)
NODES = SlurmConfig(
    partition="gpu", account="lab", qos="normal", constraint="a100|h100", nodes=4, gpus_per_node=8, gpu_type="a100",
    cpus_per_node=64, memory="480G", time="1-12", lines=("--exclusive",), array=32, at_once=16,
    setup=("module load cuda/12", 'source "$HOME/env/bin/activate"'), prefix="apptainer exec --nv image.sif",
    scratch="$TMPDIR", phases={"sample": Resources(time="2h", cpus_per_node=8, memory="60G")},
)  # fmt: skip
CASES = {
    "run": Job("run", "run", ("run", "a b.yaml", "--overlap"), ranks=True, scratch=True),
    "sample": Job(
        "generation_0001.sample",
        "sample",
        ("run", "a b.yaml", "--part", "{task}::32"),
        tasks=tuple(range(32)),
        of=32,
        needs="one",
    ),
    "seal": Job(
        "import.seal", "seal", ("seal", "x"), attempt=False, needs="cpu", extends=("slurm", "submit", "a b.yaml")
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_scripts_are_the_recorded_ones(name):
    """After a wanted change: `python tests/slurm/test_sbatch.py` records them anew; then read the difference."""
    assert render(CASES[name], NODES, LAB) == (RECORDED / f"{name}.sh").read_text()


@pytest.mark.parametrize("name", CASES)
def test_scripts_are_bash_and_strict(name):
    text = render(CASES[name], NODES, LAB)
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert "set -euo pipefail" in text
    assert "PYTHONSAFEPATH=1" in text
    assert str(Path(__file__).parents[2]) not in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 5400), ("90:30", 5430), ("1:02:03", 3723), ("2-3", 183600), ("1-00:30", 88200), ("1-01:00:01", 90001),
     ("90m", 5400), ("12h", 43200), ("2d", 172800)],
)  # fmt: skip
def test_time_limits_are_read_as_sbatch_reads_them(text, expected):
    assert seconds(text) == expected
    assert seconds(sbatch_time(text)) == expected


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("slurm.time=43200", "write time limits as 12h"),
        ("slurm.time=soon", "give a time limit such as"),
        ("slurm.partion=gpu", "did you mean slurm.partition?"),
        ("slurm.shape=both", "must be one of generations, phases"),
        ("slurm.lead=90000", "lead=90000 seconds is not below the time limit"),
        ("slurm.phases={trian: {nodes: 1}}", "slurm.phases.trian"),
        ("slurm.lines=[exclusive]", "give options as sbatch takes them"),
        ("slurm={shape: phases, array: 8, window: 8}", "no room for an array and its seal: at least 9"),
    ],
)
def test_a_wrong_section_is_refused_in_one_line(tmp_path, override, line):
    with pytest.raises(UserError) as caught:
        tiny(tmp_path, override)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_phases_ask_for_what_they_need_unless_told_otherwise():
    assert (NODES.of("train").nodes, NODES.of("train").gpus_per_node) == (4, 8)
    sample, seal = NODES.of("sample", "one"), NODES.of("seal", "cpu")
    assert (sample.nodes, sample.gpus_per_node, sample.time) == (1, 1, "2h")
    assert (seal.gpus_per_node, seal.gpu_type, seal.partition) == (0, None, "gpu")
    assert (NODES.of("select", "node").nodes, NODES.of("select", "node").gpus_per_node) == (1, 8)


def test_a_cluster_without_gpus_is_asked_for_none():
    without = SlurmConfig(gpus_per_node=0, nodes=2)
    assert [without.of("x", needs).gpus_per_node for needs in ("cpu", "one", "node", "all")] == [0, 0, 0, 0]
    script = render(Job("prepare", "prepare", ("run", "x.yaml"), needs="one"), without, LAB)
    assert "--gres" not in script


@given(st.sets(st.integers(0, 5000), min_size=1), st.integers(1, 1001))
def test_chunks_hold_every_task_once_and_stay_below_the_limit(tasks, most):
    found = chunks(sorted(tasks), most)
    assert sorted(offset + task for offset, part in found for task in part) == sorted(tasks)
    assert all(0 <= task < most for _, part in found for task in part)


def test_array_numbers_are_written_as_ranges():
    assert array_option((0, 1, 2, 5, 7, 8), 2) == "0-2,5,7-8%2"
    assert array_option((4,)) == "4"


# -- what is submitted -------------------------------------------------------------------------------------------------

CHAIN = [
    Job("train", "train", ()),
    Job("sample", "sample", (), tasks=(0, 1, 2, 3), of=4, after=("train",)),
    Job("seal", "seal", (), after=("sample",)),
    Job("evaluate", "evaluate", (), after=("seal",)),
]


def keys(jobs):
    return [job.key for job in jobs]


def test_an_empty_queue_gets_the_whole_chain():
    found = plan(CHAIN, [], 64)
    assert keys(found.submit) == ["train", "sample", "seal", "evaluate"]
    assert not found.cancel
    assert not found.left


def test_what_is_queued_or_running_is_not_submitted_again():
    entries = [Entry("1", "train", "RUNNING"), *(Entry(f"2_{i}", "sample", "PENDING", task=i, of=4) for i in range(4))]
    assert keys(plan(CHAIN, entries, 64).submit) == ["seal", "evaluate"]


def test_a_lost_task_is_made_again_and_what_waited_in_vain_is_replaced():
    entries = [
        *(Entry(f"2_{i}", "sample", "RUNNING", task=i, of=4) for i in (0, 2, 3)),
        Entry("3", "seal", "PENDING", "Dependency"),
        Entry("4", "evaluate", "PENDING", "Dependency"),
    ]
    found = plan(CHAIN[1:], entries, 64)
    assert [(job.key, job.tasks) for job in found.submit] == [("sample", (1,)), ("seal", None), ("evaluate", None)]
    assert found.cancel == ["3", "4"]


def test_doomed_jobs_are_replaced():
    found = plan(CHAIN[3:], [Entry("9", "evaluate", "PENDING", "DependencyNeverSatisfied")], 64)
    assert (found.cancel, keys(found.submit)) == (["9"], ["evaluate"])


def test_an_array_that_is_cut_otherwise_counts_as_the_whole():
    entries = [Entry("2_0", "sample", "RUNNING", task=0, of=2)]
    assert keys(plan(CHAIN[1:], entries, 64).submit) == ["seal", "evaluate"]


def test_the_window_ends_with_a_job_that_submits_the_rest():
    extend = ("slurm", "submit", "c.yaml")
    found = plan(CHAIN, [], 5, extend)
    assert keys(found.submit) == ["train"]  # an array without its seal could not go on by itself
    assert found.submit[-1].extends == extend
    assert keys(found.left) == ["sample", "seal", "evaluate"]
    found = plan(CHAIN, [], 6, extend)
    assert keys(found.submit) == ["train", "sample", "seal"]
    assert [job.extends for job in found.submit] == [(), (), extend]


def test_squeue_lines_of_other_runs_are_passed_over():
    text = (
        "12_3|RUNNING|None|n1|entroloop abc sample 1000 2000\n"
        "13|PENDING|Dependency||entroloop abc seal 0 1\n"
        "14|RUNNING|None|n2|entroloop abd seal 0 1\n15|RUNNING|None|n2|(null)\n16|RUNNING|None|n2|a|b\n"
    )
    assert client.parse(text, "abc") == [
        Entry("12_3", "sample", "RUNNING", "None", "n1", 1003, 2000),
        Entry("13", "seal", "PENDING", "Dependency", "", None, 1),
    ]


def test_jobs_of_a_fresh_run(tmp_path):
    config = tiny(tmp_path, "slurm.shape=phases", "slurm.array=2", "generations=1", "slurm.import_array=2")
    jobs = jobs_of(config, "submitted.yaml")
    assert keys(jobs) == [
        "import", "import.seal", "real.encode", "prepare",
        *(f"generation_0000.{n}" for n in ("select", "train", "sample", "sample.seal")),
        *(f"generation_0000.{n}" for n in ("encode", "encode.seal", "evaluate")),
    ]  # fmt: skip
    assert all(job.after == (before.key,) for before, job in itertools.pairwise(jobs))
    assert keys(jobs_of(tiny(tmp_path), "submitted.yaml")) == ["run"]


def test_another_python_than_this_one_is_refused():
    plain = SlurmConfig()
    check_python(plain, "/bin/sh", "/bin/python3")
    check_python(SlurmConfig(setup=("module load x",)), None, "/bin/python3")
    with pytest.raises(UserError, match=r"slurm\.setup: empty"):
        check_python(plain, None, "/bin/python3")


@pytest.mark.slow
def test_the_slurm_section_may_change_on_resume(tmp_path):
    from entroloop.data.runfolder import PREPARE
    from entroloop.launcher.run.lease import InUse, Lease
    from entroloop.launcher.run.resume import open_run

    layout = open_run(tiny(tmp_path))
    with Lease(layout.lease(PREPARE), "prepare"):
        open_run(tiny(tmp_path, "slurm.nodes=4"))
        with pytest.raises(InUse):
            open_run(tiny(tmp_path, "train.lr=0.5"))


# -- the scripts, run --------------------------------------------------------------------------------------------------

WORKER = """#!/bin/bash
# stands for `python -m entroloop.launcher …`: writes the state that the test asks for
shift 2
printf '%s\\n' "$@" > "$SEEN"
state="${@: -1}"
if [ -n "${WAITS:-}" ]; then
    trap 'printf "%b" "$SAVED" > "$state"; exit 75' USR1 TERM
    touch "$SEEN.ready"
    for _ in $(seq 100); do sleep 0.1; done
fi
[ -z "${SAYS:-}" ] || printf '%b' "$SAYS" > "$state"
exit "${ENDS:-0}"
"""
FAKES = {
    "srun": '#!/bin/bash\nwhile [[ "$1" == --* ]]; do shift; done\nexec "$@"\n',
    "scontrol": '#!/bin/bash\nif [ "$1" = show ]; then echo "JobState=${JOBSTATE:-RUNNING} PreemptTime=None"; '
    'else echo "$@" >> "$SEEN.scontrol"; fi\n',
    "worker": WORKER,
}


@pytest.fixture
def script(tmp_path):
    """Runs a job's script on stand-ins: (environment) -> (exit status, what it noted, what it asked scontrol for)."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in FAKES.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    run = tmp_path / "a run's $(folder)"
    run.mkdir()
    site = Site("x", run, tmp_path, "0123456789ab")
    job = Job("train", "train", ("run", "it's a $(false) file.yaml", "--part", "{task}::2"), tasks=(0, 1), of=2)
    path = tmp_path / "script.sh"
    path.write_text(render(job, SlurmConfig(gpus_per_node=0, python="worker", retries=1), site))

    def start(**environment):
        (tmp_path / "seen.scontrol").unlink(missing_ok=True)
        return subprocess.Popen(
            ["bash", str(path), "1000"],
            env={
                **os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "6",
                "SLURM_ARRAY_TASK_ID": "1", "SEEN": str(tmp_path / "seen"),
                "SAVED": state("interrupted", 75, "saved"), **environment,
            },
        )  # fmt: skip

    def result(process):
        status = process.wait(30)
        note = (run / "slurm" / "attempts" / "train-1001").read_text().rstrip("\n").split("\t")
        asked = tmp_path / "seen.scontrol"
        return status, note[0], note[3], asked.read_text().split() if asked.exists() else []

    return Script(start, result, tmp_path / "seen")


@dataclass(frozen=True)
class Script:
    """Starts the script; `of` gives the status of a process and its last note."""

    start: Callable[..., subprocess.Popen[bytes]]
    of: Callable[[subprocess.Popen[bytes]], tuple[Any, ...]]
    seen: Path

    def __call__(self, **environment):
        return self.start(**environment)

    def result(self, **environment):
        return self.of(self.start(**environment))


def state(status, code, reason):
    return f'{{\\n  "exit": {code},\\n  "reason": "{reason}",\\n  "status": "{status}"\\n}}\\n'


def test_success_is_noted_and_arguments_arrive_whole(script):
    assert script.result() == (0, "finished", "", [])
    seen = script.seen.read_text().splitlines()
    assert seen[:4] == ["run", "it's a $(false) file.yaml", "--part", "1001::2"]
    assert seen[4] == "--state"


def test_a_signal_is_passed_on_and_the_job_queued_again(script):
    process = script(WAITS="yes")
    while not Path(f"{script.seen}.ready").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    assert script.of(process) == (75, "requeued", "stopped by USR1: saved", ["requeue", "7"])


def test_a_cancelled_job_is_not_queued_again(script):
    process = script(WAITS="yes", JOBSTATE="COMPLETING")
    while not Path(f"{script.seen}.ready").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert script.of(process) == (75, "interrupted", "stopped by TERM: saved", [])


def test_failures_are_retried_and_then_stop_the_chain(script):
    broken = {"ENDS": "1", "SAYS": state("failed", 1, "RuntimeError: out of luck")}
    assert script.result(**broken) == (75, "requeued", "failure 1 of 2: RuntimeError: out of luck", ["requeue", "7"])
    assert script.result(**broken) == (1, "failed", "RuntimeError: out of luck (2 times)", [])


def test_a_step_that_dies_without_a_word_is_a_failure_even_if_ranks_saved_their_state(script):
    """torchrun ends the other ranks with SIGTERM when one dies: their `interrupted` must not requeue for ever."""
    died = {"ENDS": "1", "SAYS": state("interrupted", 75, "training saved")}
    assert script.result(**died)[1:3] == ("requeued", "failure 1 of 2: training saved")
    assert script.result(ENDS="137")[:3] == (1, "failed", "ended with status 137 (2 times)")


def test_success_forgets_failures(script):
    assert script.result(ENDS="1")[1] == "requeued"
    assert script.result()[1] == "finished"
    assert script.result(ENDS="1")[1] == "requeued"


def test_wrong_input_is_not_retried(script):
    wrong = {"ENDS": "2", "SAYS": state("failed", 2, "data.size: too many")}
    assert script.result(**wrong) == (2, "failed", "data.size: too many", [])


# -- states without a cluster ----------------------------------------------------------------------------------------


def test_states_come_from_the_notes_where_there_is_no_cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = tmp_path / "slurm"
    for name in ("attempts", "logs"):
        (folder / name).mkdir(parents=True)
    (folder / "jobs.jsonl").write_text(
        '{"id": "5", "key": "train", "kind": "train", "offset": 0, "tasks": null}\n'
        '{"id": "6", "key": "sample", "kind": "sample", "offset": 0, "tasks": [0, 1]}\n'
        '{"id": "8", "key": "sample", "kind": "sample", "offset": 0, "tasks": [1]}\n'
    )
    (folder / "attempts" / "train").write_text("finished\t5\tn1\t\n")
    (folder / "attempts" / "sample-0").write_text("failed\t6_0\tn2\tbad shard\n")
    (folder / "attempts" / "sample-1").write_text("failed\t6_1\tn2\tof an earlier submission\n")
    (folder / "logs" / "sample-6_0.log").write_text("first\nlast words\n")
    found, problem = states.read(folder, "abc")
    assert "no such command" in problem
    assert [(job.key, job.task, job.state, job.id) for job in found] == [
        ("train", None, "finished", "5"), ("sample", 0, "failed", "6_0"), ("sample", 1, "unknown", "8_1"),
    ]  # fmt: skip
    text = states.table(found, problem)
    assert "1 failed, 1 unknown" in text
    assert "bad shard" in text
    assert "| last words" in text


@pytest.mark.parametrize(("words", "grid"), [("slurm submit", []), ("sweep --slurm", ["sweep.grid.seed=[0,1]"])])
def test_submitting_without_a_cluster_says_where_to_go_and_begins_nothing(tmp_path, words, grid):
    done = command(*words.split(), tiny_file(tmp_path), "slurm.setup=['true']", *grid, PATH=str(tmp_path))
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "run this where SLURM's commands are" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_the_script_command_prints_and_writes_nothing(tmp_path):
    path = tiny_file(tmp_path, "slurm.shape=phases", "slurm.at_once=3")
    done = command("slurm", "script", path, "--phase", "sample", PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "generation_0000.sample: sbatch --array=0-2%3 --dependency=afterok:<generation_0000.train>" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_what_the_controller_forgot_is_asked_of_the_accounting_where_there_is_one(tmp_path, monkeypatch):
    """`scontrol` knows job 7 alone; `sacct` answers for the others as SLURM's does, or fails without a database."""
    tools = {
        "scontrol": 'case "$*" in *" 7") echo "JobId=7 JobState=TIMEOUT";; *) echo "Invalid job id" >&2; exit 1;; esac',
        "sacct": f'echo "$@" > "{tmp_path}/asked"; printf "8_1|CANCELLED by 0\\n8_2|NODE_FAIL\\n"',
    }
    for name, text in tools.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert client.ended(["7", "8_1", "8_2"]) == {"7": "TIMEOUT", "8_1": "CANCELLED", "8_2": "NODE_FAIL"}
    assert (tmp_path / "asked").read_text().split()[-2:] == ["-j", "8_1,8_2"]
    (tmp_path / "sacct").write_text("#!/bin/sh\necho 'Slurm accounting storage is disabled' >&2; exit 1\n")
    assert client.ended(["7", "8_1"]) == {"7": "TIMEOUT"}
    (tmp_path / "sacct").unlink()
    assert client.ended(["7", "8_1"]) == {"7": "TIMEOUT"}


if __name__ == "__main__":
    RECORDED.mkdir(exist_ok=True)
    for name, job in CASES.items():
        (RECORDED / f"{name}.sh").write_text(render(job, NODES, LAB))
