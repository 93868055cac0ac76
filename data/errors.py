"""The ways a command ends early on purpose. The command line turns them into exit statuses 2, 75 and 1."""


class UserError(ValueError):
    """What the user gave is wrong. The message is one line: it names the key, file or line and what would be right."""


class Interrupted(Exception):  # noqa: N818 - a state, not an error: the work is saved and can go on
    """A signal asked the process to stop; everything done so far is on disk and the same command resumes it."""


class Failed(RuntimeError):  # noqa: N818 - what happened, not a bug of the program
    """The work itself failed, for a reason that one line can tell; a traceback would only hide it."""
