from __future__ import annotations

import os
from pathlib import Path

import pytest
import typer.main
from forked import Forked
from loops import VECTORS, command, python_command, tiny
from typer.testing import CliRunner

import entroloop
from entroloop.data import take
from entroloop.data.sources.settings import COLORS
from entroloop.data.world import World
from entroloop.launcher import __main__ as command_line
from entroloop.launcher.commands import common
from entroloop.launcher.run import runner
from entroloop.launcher.run.phases import PHASES
from entroloop.slurm.config import KINDS

command_line._register()

DIGITS = ("digits", "--limit", "4", "--workers", "1")


def _unread(*words: str) -> None:
    """A command whose reader has left."""
    there, here = os.pipe()
    os.close(there)
    os.dup2(here, 1)
    command_line.main(list(words))


def _into_a_full_disk(*words: str) -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    command_line.main(list(words))


def test_every_command_is_registered_once():
    command_line._register()
    names = [str(command.name) for command in command_line.app.registered_commands]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("words", [("config",), ("config", "--json"), ("--help",), ("import", "--help")])
def test_a_reader_who_leaves_ends_a_command_without_a_word(words):
    ended = Forked(_unread, *words)
    assert ended.communicate(timeout=60)[1] == ""
    assert ended.returncode == 141


def test_output_that_cannot_be_written_is_one_line():
    ended = Forked(_into_a_full_disk, "config")
    assert ended.communicate(timeout=60)[1].splitlines() == [
        "entroloop: standard output or a temporary file: no space left on device: free some space and run the same "
        "command again"
    ]
    assert ended.returncode == 2


@pytest.mark.parametrize("words", [("import", *DIGITS[:1], "{}", *DIGITS[1:]), ("run", "{}"), ("verify", "{}")])
@pytest.mark.parametrize("place", ["/proc/x", "/dev/null/x", "{file}/x", "{long}"])
def test_a_path_that_is_refused_is_one_line_that_names_it(tmp_path: Path, words, place):
    (tmp_path / "file").write_text("")
    path = place.format(file=tmp_path / "file", long=tmp_path / ("x" * 300))
    ended = command(*(word.format(path) for word in words))
    assert ended.returncode == 2
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"entroloop: {path.removesuffix('/x')}")
    assert ": " in line.removeprefix("entroloop: ")


def test_an_error_without_a_path_is_no_users_error(monkeypatch):
    def broken(*args: object, **named: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(command_line, "app", broken)
    with pytest.raises(OSError, match="Input/output error"):
        command_line._run([])


@pytest.fixture(scope="module")
def finished_vectors(once):
    return once("paths", lambda folder: runner.run(tiny(folder, of=VECTORS), World(), lambda: False)) / "tiny"


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("run", "{}/config.yaml", "--dry-run"), ("status", "{}"), ("status", "{}", "--json"), ("verify", "{}"),
        ("config", "{}"), ("sample", "{}"), ("seal", "{}/real/images"),
        ("slurm", "script", "{}/config.yaml", "name=new"),
        ("entropy", "{}/real/images"), ("measure", "{}/real/images", "{}/generation_0001/samples", "--json"),
        ("select", "{}/real/images", "--size", "2", "--out", "{free}/ids.npy"),
        ("import", "iris", "{free}/iris", "--workers", "1"), ("report", "{}", "--format", "csv", "--out", "{free}/r"),
        ("run", "{}/config.yaml", "folder={free}", "--phase", "prepare"), ("sweep", "--help"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_every_command_ends_quietly_when_its_reader_has_left(finished_vectors, tmp_path, words):
    ended = Forked(_unread, *(word.format(finished_vectors, free=tmp_path) for word in words))
    assert ended.communicate(timeout=120)[1] == ""
    assert ended.returncode == 141


def test_commands_that_work_on_data_can_be_quiet_or_verbose():
    told = {c.name: {o for param in c.params for o in param.opts} for c, _ in _options()}
    with_both = {name for name, options in told.items() if {"-q", "--quiet", "-v", "--verbose"} <= options}
    short = {"entroloop", "fork", "status", "list", "config", "doctor"}
    assert with_both == set(command_line.COMMANDS) - short


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("words", [(), ("run",), ("slurm",), ("slurm", "script")])
def test_help_is_short_or_long(words, flag):
    ended = CliRunner().invoke(command_line.app, [*words, flag])
    assert ended.exit_code == 0
    assert "Usage: " in ended.output


def test_the_version_is_that_of_the_package():
    ended = python_command("--version")
    assert (ended.returncode, ended.stdout) == (0, f"entroloop {entroloop.__version__}\n")


def test_the_shell_completes_commands_options_and_choices():
    def completed(line: str, word: int) -> str:
        return command(_ENTROLOOP_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(word)).stdout

    assert {"encode", "entropy"} <= set(completed("entroloop en", 1).split())
    assert "--strategy" in completed("entroloop select --str", 2).split()
    assert completed("entroloop take a b c --as ", 6).split() == list(take.FORMS)


def _options():
    """(command, option) of every command of the program."""
    waiting = [typer.main.get_command(command_line.app)]
    while waiting:
        found = waiting.pop()
        waiting += getattr(found, "commands", {}).values()
        yield from ((found, option) for option in found.params)


def test_help_and_messages_name_the_same_choices():
    """The lists that help shows without importing what they are of."""
    assert common.FORMS == take.FORMS
    assert tuple(COLORS) == common.COLORS
    assert tuple(phase.name for phase in PHASES) == common.PHASES
    assert common.JOBS == KINDS
    shown = {(c.name, o.name): o.metavar for c, o in _options() if o.metavar}
    assert shown["run", "phase"] == "|".join(common.PHASES)
    assert shown["take", "form"] == "shards|folder|npz|keys"
    assert shown["import", "encoding"] == "png|npy"


@pytest.mark.parametrize("words", ["verify GIVEN", "doctor GIVEN", "slurm cancel GIVEN", "take digits GIVEN chosen"])
def test_what_is_there_but_of_another_kind_is_not_said_to_be_missing(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    given, said = Path("given"), "given: is a file: give a folder"
    if words.startswith("take"):
        given.mkdir()
        said = "given: is a folder: give a .npy file"
    else:
        given.touch()
    ended = command(*words.replace("GIVEN", "given").split())
    assert (ended.returncode, ended.stderr) == (2, f"entroloop: {said}\n")
