"""Renders chat templates as Hugging Face does: Jinja in a sandbox, a few helpers, nothing else.

Templates come with a model, messages from anybody: both are bounded (loop turns, output size) and every failure is a 400 error
that says why. The time a template sees is passed in, so a conversation can be rendered again exactly. Knows no tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from inference_stack.core.errors import InferenceError, invalid, unsupported_model

MAX_OUTPUT = 16 << 20
"""Characters that a rendered conversation may have."""
MAX_TURNS = 2_000_000
"""Loop turns that rendering one conversation may take."""

_BUDGET = "__turns__"
_COUNTED = "__counted__"
RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", _BUDGET})


class ChatTemplate:
    """One compiled template. `variables` are visible to it by name (`bos_token`, …). Safe to use from several threads.

    `literals` is all text that the template itself can write, its pieces separated by NUL.

    Raises `unsupported_model` where the source is not a template.
    """

    def __init__(self, source: str, variables: Mapping[str, str] | None = None) -> None:
        self.source = source
        self.variables = dict(variables or {})
        environment = _environment()
        try:
            syntax = environment.parse(source)
            self.literals = _literals(syntax)
            self._template = _compile(environment, syntax)
        except TemplateSyntaxError as error:
            raise unsupported_model(
                f"The model's chat template is not valid Jinja: {error.message} (line {error.lineno})."
            ) from error

    def render(self, values: Mapping[str, Any], *, now: float) -> str:
        """The text for `values` (messages, tools, …); `now` in seconds since the epoch is what `strftime_now` shows, in UTC.

        Raises a 400 error that carries the template's own message, or says which bound was passed.
        """
        scope = {**self.variables, **values, "strftime_now": _strftime(now), _BUDGET: _Budget(MAX_TURNS)}
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(scope):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_OUTPUT:
                    _refuse(f"it writes more than {MAX_OUTPUT} characters")
        except InferenceError:
            raise
        except RecursionError as error:
            raise template_error("it, or the messages, are nested too deeply") from error
        except TemplateError as error:
            raise template_error(error.message or type(error).__name__) from error
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, ArithmeticError, MemoryError) as error:
            raise template_error(f"{type(error).__name__}: {error}") from error
        return "".join(pieces)


def _literals(syntax: nodes.Template) -> str:
    data = [node.data for node in syntax.find_all(nodes.TemplateData)]
    constants = [node.value for node in syntax.find_all(nodes.Const) if isinstance(node.value, str)]
    return "\0".join([*data, *constants])


def template_error(why: str) -> InferenceError:
    """The template cannot render this conversation (400)."""
    return invalid(
        f"The model's chat template cannot render these messages: {why}", param="messages", code="chat_template_error"
    )


def _refuse(why: str) -> NoReturn:
    raise template_error(why)


class _Budget:
    """How many loop turns one rendering may still take."""

    def __init__(self, turns: int) -> None:
        self._left = turns

    def spend(self, turns: int) -> None:
        self._left -= turns
        if self._left < 0:
            _refuse(f"it takes more than {MAX_TURNS} loop turns")


@pass_context
def _counted(context: Context, items: Any) -> Any:
    """What a loop runs over, with its turns taken off the budget."""
    budget: _Budget = context[_BUDGET]
    if hasattr(items, "__len__"):
        budget.spend(len(items))
        return items
    return _spending(items, budget)


def _spending(items: Any, budget: _Budget) -> Iterator[Any]:
    for item in items:
        budget.spend(1)
        yield item


class _GenerationTag(Extension):
    """`{% generation %}` … `{% endgeneration %}` marks what training should learn; for rendering it is only its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
    """Jinja's `namespace`, which refuses names that begin with an underscore."""

    def __init__(*args: Any, **names: Any) -> None:  # no named self: a template may call an attribute so
        self, *pairs = args
        values = dict(*pairs, **names)
        for name in values:
            _check_attribute(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace may not have the attribute {name!r}")


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.filters[_COUNTED] = _counted
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["namespace"] = _Namespace
    return environment


def _compile(environment: ImmutableSandboxedEnvironment, syntax: nodes.Template) -> Template:
    for loop in syntax.find_all(nodes.For):
        loop.iter = nodes.Filter(loop.iter, _COUNTED, [], [], None, None, lineno=loop.lineno)
    return Template.from_code(environment, environment.compile(syntax), environment.make_globals(None))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as Hugging Face's templates expect it: nothing escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _strftime(now: float) -> Callable[[str], str]:
    return lambda form: datetime.fromtimestamp(now, tz=UTC).strftime(form)
