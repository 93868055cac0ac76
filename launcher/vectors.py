"""Being written."""


def select_command() -> None:
    """Choose."""


def entropy_command() -> None:
    """Entropy."""
