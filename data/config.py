"""The base of every section of a run's configuration, and the section `data`.

A section is frozen and refuses unknown keys. The docstring below each key gives its meaning; `entroloop config`,
docs/configuration.md and the JSON schema print it. A key marked HOW does not change what is sealed. Recipes leave such
a key out, so it may differ when a run is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
)
from pydantic_core import CoreSchema, core_schema

from entroloop.data.address import check
from entroloop.data.errors import UserError
from entroloop.data.paths import expanded
from entroloop.data.registry import Registry

# Metadata of a key: Annotated[int, HOW].
HOW = "how"
PATH = "path"  # of text that names a file or folder, with ~ and $VARIABLES as they were written
OWN_NAME = "module:attribute"


def _is_number(annotation: Any) -> bool:
    return bool({int, float} & {annotation, *get_args(annotation)}) and get_origin(annotation) is not dict


class Named:
    """Metadata of a key whose value is a name in a registry: Annotated[str, Named(STRATEGIES)].

    The value is looked up when it is read. The JSON schema lists the built-in names as examples.

    others  further values that the key accepts
    """

    def __init__(self, registry: Registry[Any], *others: str) -> None:
        self.registry, self.others = registry, others

    def _check(self, name: str) -> str:
        return name if name in self.others else self.registry.check(name, *self.others)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "examples": [*self.others, *self.registry.built_in, OWN_NAME]}


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="wrap")
    @classmethod
    def _name_the_key(cls, value: Any, validate: Callable[[Any], Any], info: ValidationInfo) -> Any:
        """Turns a UserError of a key's own checks into the ValueError that pydantic reports with the key.

        Refuses true and false for a number; pydantic would read them as 1 and 0.
        """
        if isinstance(value, bool) and _is_number(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("must be a number")
        try:
            return validate(value)
        except UserError as error:
            raise ValueError(str(error)) from error

    def deciding(self) -> dict[str, Any]:
        """The plain values of all keys that decide what is sealed, including keys of nested sections."""
        values = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            inner = getattr(self, name)
            if HOW in field.metadata:
                del values[name]
            elif isinstance(inner, Section):
                values[name] = inner.deciding()
        return values

    def paths(self) -> Iterator[tuple[str, str]]:
        """The dotted key and the text of every path that is given, including those of nested sections."""
        for name, field in type(self).model_fields.items():
            inner = getattr(self, name)
            if PATH in field.metadata and inner is not None:
                yield name, inner
            elif isinstance(inner, Section):
                yield from ((f"{name}.{key}", path) for key, path in inner.paths())


class DataConfig(Section):
    """The real data of a run, and how training sets are read."""

    source: Annotated[str, AfterValidator(check), PATH]
    """A sealed data set, or anything that `entroloop import` takes (it is then imported into the run)."""
    resolution: int | None = Field(None, ge=1)
    """Height and width to which images are resized; null keeps their own size."""
    split: str | None = None
    """Split to use from a source that has several: `train` or `test`."""
    limit: int | None = Field(None, ge=1)
    """Import at most this many samples; null imports all."""
    size: int = Field(256, ge=2)
    """N: the number of real samples that train generation 0."""
    heldout: int = Field(512, ge=2)
    """Number of real samples kept for the measures."""
    labelled: int = Field(768, ge=0)
    """Number of real images that train the classifier whose features are measured; 0 if no classifier is used."""
    trusted: int = Field(0, ge=0)
    """Number of real samples that are the reference of strategies from generation 1 on, and have no other use; 0: the
    training samples of generation 0 are the reference."""
    split_seed: int = 0
    """Decides which samples are held out and labelled; runs with the same value use the same held-out samples."""
    shard_size: int = Field(1024, ge=1)
    """Samples per shard of the imported set and of training sets."""
    buffer: int = Field(16, ge=1)
    """Number of shards of a training set whose samples are shuffled together."""
    selected: Literal["shards", "index"] = "shards"
    """`shards` writes a copy of each training set; `index` writes only references to samples of other sets."""
    mode: Annotated[Literal["auto", "resident", "streaming"], HOW] = "auto"
    """`resident` decodes a training set once into memory; `streaming` reads the shards while training; `auto` is
    resident if the set needs at most `memory_share` of the free memory."""
    workers: Annotated[int, HOW] = Field(1, ge=0)
    """Processes per rank that read ahead when streaming; 0 reads in the training process."""
    memory_share: Annotated[float, HOW] = Field(0.25, gt=0, le=1)
    """Share of the free memory that a resident training set may use (`mode: auto`)."""
    skip_damaged: Annotated[bool, HOW] = False
    """Leave out, count and report samples that cannot be read, instead of stopping. `mode: auto` then streams;
    `mode: resident` still stops. Only under this key may the training samples of a run differ from its recipe."""

    @field_validator("trusted")
    @classmethod
    def _a_reference_has_a_distribution(cls, value: int) -> int:
        if value == 1:
            raise ValueError("a reference needs at least 2 samples, or 0 for none of its own")
        return value

    @property
    def located(self) -> str:
        """The source, with ~ and variables replaced. Raises UserError as `expanded` does."""
        return expanded(self.source)
