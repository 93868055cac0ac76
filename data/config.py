"""The base of every section of a run's configuration.

A section is frozen and refuses unknown keys. The docstring below each key says what the key means and is read by
`entroloop config`, by docs/configuration.md and by the JSON schema. A key marked HOW does not change what is sealed: it
is left out of recipes, so it may differ when a run is resumed.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

HOW = "how"  # metadata of a key: Annotated[int, HOW]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def deciding(self) -> dict[str, Any]:
        """The plain values of all keys that decide what is sealed, those of nested sections included."""
        values = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            inner = getattr(self, name)
            if HOW in field.metadata:
                del values[name]
            elif isinstance(inner, Section):
                values[name] = inner.deciding()
        return values
