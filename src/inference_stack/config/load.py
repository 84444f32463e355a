"""The effective configuration: flags over environment over file over defaults.

Reads a YAML file and a mapping of environment variables that it is given; it reads no environment by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from inference_stack.config.build import Given, build, flatten, unknown
from inference_stack.config.schema import knobs
from inference_stack.config.tree import Config
from inference_stack.core.errors import invalid

PREFIX = "ISTACK_"
FILE_VARIABLE = "ISTACK_CONFIG"


def from_file(path: Path) -> list[Given]:
    """The values in a YAML file. Raises `InferenceError` when it cannot be read, or is not a mapping of known settings."""
    import yaml

    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise invalid(f"{path}: {error.strerror}", code="invalid_config") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise invalid(f"{path}: not valid YAML: {' '.join(str(error).split())}", code="invalid_config") from error
    if not isinstance(plain, Mapping | None):
        raise invalid(f"{path}: expected settings by name, not {type(plain).__name__}", code="invalid_config")
    return list(flatten(Config, plain or {}, str(path)))


def from_environment(environ: Mapping[str, str]) -> Iterator[Given]:
    """The values in variables named like `ISTACK_SERVER__PORT`. Raises `InferenceError` for one that names no setting."""
    known = {knob.env: knob for knob in knobs(Config)}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name == FILE_VARIABLE:
            continue
        if name not in known:
            raise unknown(name, known, "environment")
        yield Given(known[name].path, environ[name], name, text=True)


def load(file: Path | None, environ: Mapping[str, str], flags: Iterable[Given] = ()) -> Config:
    """The effective configuration. `file` None: the one that `ISTACK_CONFIG` names, if any. Raises `InferenceError`."""
    if file is None and environ.get(FILE_VARIABLE):
        file = Path(environ[FILE_VARIABLE])
    given: list[Given] = from_file(file) if file else []
    return build(Config, [*given, *from_environment(environ), *flags])


def dump(plain: dict[str, Any]) -> str:
    """A plain tree as YAML that `load` reads back."""
    import yaml

    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
