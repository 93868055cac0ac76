"""The options of strategies: built-in ones are listed in the catalogue, others in signatures."""

import inspect
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest

from entroloop.data.errors import UserError
from entroloop.selection.catalogue import ROW, STRATEGIES
from entroloop.selection.options import check_fit, check_options


@pytest.mark.parametrize("name", STRATEGIES.built_in)
def test_the_catalogue_lists_what_the_function_takes(name):
    function = STRATEGIES.load(name)
    taken = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    listed = STRATEGIES.facts(name).options
    types = {option: get_args(kind)[0] if get_origin(kind) is Annotated else kind for option, kind in listed.items()}
    hints = get_type_hints(function, include_extras=True)
    assert types == {p.name: hints[p.name] for p in taken}  # and no bounds in the signature
    check_options(name, {p.name: p.default for p in taken})


def own(problem, *, first: Annotated[int, ROW] = -1, share: Annotated[float, "no bound"] = 0.5):
    """A strategy of the user's own."""


def test_the_id_of_a_row_is_checked_in_strategies_of_the_users_own():
    name = f"{__name__}:own"
    check_options(name, {"first": 9, "share": 1})
    check_fit(name, {"first": 8}, size=5, total=10)
    with pytest.raises(UserError, match="first: must be an id below the number of rows, 9, is 9"):
        check_fit(name, {"first": 9, "trim": 0.1}, size=5, total=10)
    with pytest.raises(UserError, match=r"option of strategy .* 'frist' does not exist: did you mean first\?"):
        check_options(name, {"frist": 9})
