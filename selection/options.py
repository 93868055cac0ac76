"""The options of strategies: their names, types and bounds, and whether they fit a choice. Needs no torch.

name of a strategy -> its options -> check_options (by types and bounds), check_fit (by the number of rows)
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any, get_args, get_type_hints

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from entroloop.data.errors import UserError
from entroloop.data.registry import unknown
from entroloop.data.wording import fault
from entroloop.selection.catalogue import ROW, STRATEGIES

# Arguments of `select` that are also options of a run.
OF_A_RUN: Mapping[str, Any] = {
    "trim": Annotated[float, Field(ge=0, lt=1)],
    "trim_k": Annotated[int, Field(ge=1)],
    "per_class": bool,
}


ANY_FINITE = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)


def check_options(name: str, options: Mapping[str, Any], *, also: Mapping[str, Any] | None = None) -> None:
    """Raises UserError for an option that the strategy does not have, or a value that its annotation does not allow.

    also  further options by name, with their annotations

    A strategy states an option's type and bounds in one place, for example `Annotated[float, Field(ge=0, le=1)]`: a
    built-in one in its catalogue, any other in its signature.
    """
    own, anything = _options_of(name)
    known = {**own, **(also or {})}
    for option, value in options.items():
        if option not in known and not anything:
            if not own:
                raise UserError(f"strategy {name}: has no options, {option!r} was given")
            raise unknown(f"option of strategy {name}", option, known)
        plain = value.item() if isinstance(value, np.generic) else value
        try:
            adapter = TypeAdapter(known.get(option, Any), config=ANY_FINITE)
            adapter.validate_python(plain, strict=True)
        except ValidationError as error:
            raise UserError(f"{option}: {fault(error.errors()[0])}, is {value}") from error


def _options_of(name: str) -> tuple[Mapping[str, Any], bool]:
    """The annotations of a strategy's options by name, and whether it accepts any other option.

    An annotation that cannot be resolved is Any. Raises UserError if there is no such strategy.
    """
    if name in STRATEGIES.built_in:
        return STRATEGIES.built_in[name].options, False
    function = STRATEGIES.load(name)
    try:
        hints = get_type_hints(function, include_extras=True)
    except (NameError, TypeError):  # a name that only type checkers import, or an object that is called
        hints = {}
    parameters = inspect.signature(function).parameters.values()
    own = {p.name: hints.get(p.name, Any) for p in parameters if p.kind is p.KEYWORD_ONLY}
    return own, any(p.kind is p.VAR_KEYWORD for p in parameters)


def check_fit(name: str, options: Mapping[str, Any], size: int, total: int) -> None:
    """Raises UserError when the options do not fit a choice of `size` out of `total` rows."""
    trim, k = options.get("trim", 0.0), options.get("trim_k", 1)
    left = total - int(trim * total)
    if left < size:
        raise UserError(f"trim: must be a share that leaves at least {size} of {total} rows, is {trim}")
    if trim and k >= total:
        raise UserError(f"trim_k: must be below the number of rows, {total}, is {k}")
    for option, annotation in _options_of(name)[0].items():
        if ROW in get_args(annotation) and option in options:
            check_row(option, options[option], left)


def check_row(option: str, row: int, total: int) -> None:
    """Raises UserError when none of `total` rows has the id that an option gives."""
    if row >= total:
        raise UserError(f"{option}: must be an id below the number of rows, {total}, is {row}")
