"""What the server answers, as it is: JSON objects whose fields can also be read as attributes."""

from __future__ import annotations

import json
from typing import Any


class Object(dict[str, Any]):
    """A JSON object. `answer.choices[0].message.content` and `answer["choices"][0]["message"]["content"]` are the same.

    Fields that are called like methods of `dict`, such as `items`, can only be read with brackets.
    """

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the answer has no field {name!r}") from None


def parse(text: str | bytes) -> Any:
    """JSON, with its objects as `Object`. Raises `ValueError`."""
    return json.loads(text, object_hook=Object)
