"""The command line: `entroloop …`, or `python -m entroloop.launcher …` under torchrun and accelerate.

Exit status: 0 done, 1 failed, 2 wrong input (one line, no traceback), 75 stopped by a signal and resumable.
Commands import their modules when they run, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
import os
import signal
import sys
from typing import Annotated, TextIO

import typer

from entroloop.data.errors import NO_ROOM, Failed, Interrupted, UserError, exhausted, refusal, unusable, with_peers

FAILED, REFUSED, RESUMABLE = 1, 2, 75  # exit statuses
AGAIN = "; run the same command again to go on"
PROGRESS = "entroloop.data.progress"  # logs to standard error, so that standard output stays that of the command

# By version, typer brings its own click or uses the installed click. This is the base class of its errors in both.
CommandLineError = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    name="entroloop",
    help="Train diffusion models on their own samples, generation after generation, without model collapse.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        import entroloop

        typer.echo(f"entroloop {entroloop.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


# In the order in which `--help` lists them. Each is `NAME_command` of a file of `commands`.
COMMANDS = (
    "run", "sweep", "demo", "fork", "status", "list", "config", "import", "verify", "seal", "latents", "encode",
    "select", "take", "entropy", "measure", "report", "sample", "doctor",
)  # fmt: skip


@functools.cache
def _register() -> None:
    from entroloop.launcher.commands import slurm

    for name in COMMANDS:
        file = "import_" if name == "import" else name  # `import` is a word of Python
        module = importlib.import_module(f"entroloop.launcher.commands.{file}")
        app.command(name)(getattr(module, f"{name}_command"))
    app.add_typer(slurm.app)


def main(arguments: list[str] | None = None) -> None:
    """Runs a command and exits with its status."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings about ranks that have ended are stack traces
    out, progress = _Lines(sys.stdout), _Lines(sys.stderr)
    out.addFilter(lambda record: record.name != PROGRESS)
    progress.addFilter(lambda record: record.name == PROGRESS and not sys.stderr.isatty())  # a terminal has the bar
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[out, progress])
    logging.getLogger("entroloop").setLevel(logging.INFO)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):  # it was a file and is a pipe now
                stream.reconfigure(errors="backslashreplace")  # the name of a file need not be text
    _register()
    sys.exit(_run(arguments))


def _run(arguments: list[str] | None) -> int:
    try:
        with with_peers("an exchange between ranks"):  # exchanges of DDP, DeepSpeed and others; `World` names its own
            status = app(args=arguments, standalone_mode=False)
        sys.stdout.flush()  # now, so that a reader who left is noticed here
    except UserError as error:
        return _ended(" ".join(str(error).split()), REFUSED)
    except typer.Abort as stop:  # typer raises it for KeyboardInterrupt, and for EOFError, which is no keypress here
        if isinstance(stop.__cause__, EOFError):
            raise stop.__cause__ from None
        return _ended(f"stopped{AGAIN}", RESUMABLE)
    except (Interrupted, KeyboardInterrupt) as stop:
        return _ended(f"{str(stop) or 'stopped'}{AGAIN}", RESUMABLE)
    except SystemExit as end:  # typer raises it for BrokenPipeError
        if isinstance(end.__context__, BrokenPipeError):
            return _unread()
        raise
    except BrokenPipeError:
        return _unread()
    except OSError as error:
        if error.errno in NO_ROOM and error.filename is None:  # `data.files` names the files that it writes
            _discard_output()  # what is left of it cannot be written at exit either
            return _ended(str(unusable(error, "standard output or a temporary file")), REFUSED)
        refused = refusal(error)
        return _ended(exhausted(error), FAILED) if refused is None else _ended(str(refused), REFUSED)
    except UnicodeEncodeError:  # a path is stored as text, in the configuration of a run for example
        strange = [word for word in arguments or sys.argv[1:] if word != word.encode(errors="replace").decode()]
        if not strange:
            raise
        line = f"{strange[0]}: not UTF-8, so no file of entroloop can contain this name: give another name"
        return _ended(line, REFUSED)
    except Failed as error:
        return _ended(str(error), FAILED)
    except (MemoryError, RuntimeError) as error:
        return _ended(exhausted(error), FAILED)
    except CommandLineError as error:  # type: ignore[misc]  # found at run time
        if type(error).__name__ == "NoArgsIsHelpError":  # the help is printed already
            return 0
        return _ended(" ".join(error.format_message().split()), REFUSED)
    return int(status or 0)


def _unread() -> int:
    """The exit status of a command whose reader (`| head`) has closed the pipe."""
    _discard_output()
    return 128 + signal.SIGPIPE


def _discard_output() -> None:
    with contextlib.suppress(OSError, ValueError):  # ValueError: standard output has no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Lines(logging.StreamHandler[TextIO]):
    """Writes log lines. A closed pipe ends the command, as it does for printed lines."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            raise
        super().handleError(record)


def _ended(line: str | None, status: int) -> int:
    """Prints the line of the error that is being handled, or raises the error where nothing is known about it."""
    if line is None:
        raise
    print(f"entroloop: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
