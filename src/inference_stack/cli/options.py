"""Settings as command-line options, generated from a tree of them: one option per setting, its help the setting's own sentence.

A command that takes them is written with a parameter `settings: list[Given]`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from inference_stack.config.build import Given
from inference_stack.config.flags import flags, spelled
from inference_stack.config.reference import shown
from inference_stack.config.schema import Knob
from inference_stack.config.tree import Config

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="YAML file with settings. [env: ISTACK_CONFIG]", show_default=False),
]


def _variable(knob: Knob) -> str:
    return "setting_" + "_".join(knob.path)


def _parameter(flag: str, knob: Knob) -> inspect.Parameter:
    default = "" if knob.default == "" else f" [default: {shown(knob.default).strip('`')}]"
    choices = "|".join(map(str, knob.choices)) or None
    option = typer.Option(spelled(flag, knob), metavar=choices, help=knob.help + default, show_default=False)
    kind: Any = Annotated[knob.type | None, option]
    return inspect.Parameter(_variable(knob), inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)


def with_settings(tree: type = Config) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command every setting of `tree` as an option; those on the command line reach it as `settings`."""
    known = {_variable(knob): (flag, knob) for flag, knob in flags(tree).items()}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def wrapped(**arguments: Any) -> None:
            values = {name: arguments.pop(name) for name in known}
            given = {name: value for name, value in values.items() if value is not None}
            settings = [Given(known[name][1].path, value, known[name][0]) for name, value in given.items()]
            command(**arguments, settings=settings)

        own = inspect.signature(command, eval_str=True).parameters
        parameters = [parameter for name, parameter in own.items() if name != "settings"]
        parameters += [_parameter(flag, knob) for flag, knob in known.values()]
        del wrapped.__dict__["__wrapped__"]
        wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return wrapped

    return decorate
