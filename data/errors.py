"""The two ways a command ends early on purpose. The command line turns them into exit statuses 2 and 75."""


class UserError(ValueError):
    """What the user gave is wrong. The message is one line: it names the key, file or line and what would be right."""


class Interrupted(Exception):  # noqa: N818 - a state, not an error: the work is saved and can go on
    """A signal asked the process to stop; everything done so far is on disk and the same command resumes it."""
