"""From the bytes of a body to a typed request, or to a refusal that names the parameter and what was expected of it.

The structs of `schema` decide what is valid; here msgspec's findings are put into OpenAI's words.
"""

from __future__ import annotations

import re
from typing import Any, Final, NoReturn, TypeVar

import msgspec

from inference_stack.core.errors import InferenceError, invalid
from inference_stack.gateway.errors import refuse

T = TypeVar("T")

UNSUPPORTED: Final = {
    **dict.fromkeys(("tools", "tool_choice", "functions", "function_call", "tool_calls"), "Tool calling"),
    **dict.fromkeys(("response_format", "guided_json", "guided_regex", "guided_choice", "structured_outputs"),
                    "Structured output"),
    **dict.fromkeys(("audio", "modalities"), "Output other than text"),
    **dict.fromkeys(("image_url", "input_audio", "video_url", "file"), "Content other than text"),
    "prediction": "Predicted output",
    "web_search_options": "Web search",
    **dict.fromkeys(("reasoning_effort", "verbosity"), "Setting the effort of reasoning"),
    "chat_template": "A chat template of the client",
    "suffix": "Completion with a suffix",
    "moderation": "Moderation",
    "service_tier": "This service tier",
    "best_of": "Choosing the best of several completions",
    "use_beam_search": "Beam search",
    "store": "Storing completions",
    "include_obfuscation": "Padding of streams",
}  # fmt: skip
"""Parameters that exist elsewhere, and the ability they ask for."""

PLAIN: Final = ("store", "best_of", "service_tier", "suffix")
"""Those of them whose harmless values are simple enough for a client to get the type wrong."""

AT: Final = re.compile(r" - at `(?P<path>\$[^`]*|key` in `\$[^`]*)`$")
TYPES: Final = {
    "int": "an integer", "float": "a number", "str": "a string", "bool": "a boolean", "array": "an array",
    "object": "an object", "null": "null",
}  # fmt: skip
MISSING: Final = re.compile(r"Object missing required field `(?P<name>.*)`")
UNKNOWN: Final = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
WRONG_TYPE: Final = re.compile(r"Expected `(?P<expected>[^`]*)`, got `(?P<got>[^`]*)`")
BOUND: Final = re.compile(r"Expected `(?P<kind>int|float)` (?P<sign><=|>=|<|>) (?P<bound>.*)")
LENGTH: Final = re.compile(r"Expected `(?P<kind>str|array|object)` of length (?P<sign><=|>=) (?P<bound>\d+)")
STEP: Final = re.compile(r"\.([^.\[]+)|\[(\d+)\]")


def decode_json(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """The typed request in `body`. Raises `InferenceError` (400)."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        _explain(str(error), body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        detail = "it is not valid UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise invalid(f"We could not parse the JSON body of your request: {detail}.", code="invalid_json") from None
    except RecursionError:
        raise invalid("The JSON body of your request is nested too deeply.", code="invalid_json") from None


def unsupported(param: str, what: str) -> InferenceError:
    """A parameter asks for something this server does not do."""
    return invalid(
        f"Unsupported parameter: '{param}'. {what} is not supported by this server.",
        param=param,
        code="unsupported_parameter",
    )


def _explain(finding: str, body: bytes) -> NoReturn:
    """Raise `finding` of msgspec in OpenAI's words."""
    place = AT.search(finding)
    path = place["path"] if place else "$"
    what = finding[: place.start()] if place else finding
    param = path.removeprefix("key` in `").removeprefix("$").removeprefix(".")
    head = re.split(r"[.\[]", param)[0]
    if head in UNSUPPORTED and not (WRONG_TYPE.match(what) and head in PLAIN):
        raise unsupported(head, UNSUPPORTED[head])
    if unknown := UNKNOWN.match(what):
        _unknown(f"{param}.{unknown['name']}" if param else unknown["name"], unknown["name"])
    tail = param.rpartition(".")[2]
    if tail in UNSUPPORTED:
        raise unsupported(param, UNSUPPORTED[tail])
    if missing := MISSING.match(what):
        full = f"{param}.{missing['name']}" if param else missing["name"]
        raise invalid(f"Missing required parameter: '{full}'.", param=full, code="missing_required_parameter")
    if not param:
        raise invalid(f"Invalid body: {_expectation(what)}.", code="invalid_type")
    if path.startswith("key`"):
        raise invalid(f"Invalid key in '{param}': {_expectation(what)}.", param=param, code="invalid_value")
    raise _about(what, param, _value_at(body, path))


def _unknown(full: str, name: str) -> NoReturn:
    if name in UNSUPPORTED:
        raise unsupported(full, UNSUPPORTED[name])
    shown = full if len(full) <= 200 else full[:200] + "…"
    raise invalid(f"Unrecognized request argument supplied: {shown}", param=shown, code="unknown_parameter")


def _about(what: str, param: str, value: object) -> InferenceError:
    """The error for one parameter whose value is wrong."""
    if wrong := WRONG_TYPE.match(what):
        got = TYPES.get(wrong["got"], wrong["got"])
        message = f"Invalid type for '{param}': expected {_types(wrong['expected'])}, but got {got} instead."
        return invalid(message, param=param, code="invalid_type")
    if bound := BOUND.match(what):
        kind = "integer" if bound["kind"] == "int" else "decimal"
        side, code = ("above maximum", "above_max") if "<" in bound["sign"] else ("below minimum", "below_min")
        limit = bound["bound"].removesuffix(".0")
        message = f"Invalid '{param}': {kind} {side} value. Expected a value {bound['sign']} {limit}{_got(value)}."
        return invalid(message, param=param, code=f"{kind}_{code}_value")
    if length := LENGTH.match(what):
        return _about_length(length, param, value)
    if param.endswith((".role", ".type")):
        return _about_tag(param, value)
    return invalid(
        f"Invalid value for '{param}': {_expectation(what)}{_got(value)}.", param=param, code="invalid_value"
    )


def _about_length(length: re.Match[str], param: str, value: object) -> InferenceError:
    kind = {"str": "string", "array": "array", "object": "object"}[length["kind"]]
    long = length["sign"] == "<="
    size = f", but got one with length {len(value)} instead" if isinstance(value, str | list | dict) else ""
    message = (
        f"Invalid '{param}': {kind} too {'long' if long else 'short'}. "
        f"Expected {'an' if kind != 'string' else 'a'} {kind} with {'maximum' if long else 'minimum'} "
        f"length {length['bound']}{size}."
    )
    return invalid(message, param=param, code=f"{kind}_{'above_max' if long else 'below_min'}_length")


def _about_tag(param: str, value: object) -> InferenceError:
    if param.endswith(".role"):
        known = "Supported values are: 'system', 'developer', 'user' and 'assistant'"
    else:
        known = "Only parts of type 'text' are supported by this server"
    return invalid(f"Invalid value: {_shown(value)}. {known}.", param=param, code="invalid_value")


def _expectation(what: str) -> str:
    if wrong := WRONG_TYPE.match(what):
        return f"expected {_types(wrong['expected'])}, but got {TYPES.get(wrong['got'], wrong['got'])} instead"
    if "matching regex" in what:
        return "expected decimal digits" if "[0-9]" in what else "null and control characters are not allowed"
    return what[:1].lower() + what[1:].replace("`", "'")


def _types(expected: str) -> str:
    names = [TYPES.get(name, name) for name in expected.split(" | ") if name != "null"]
    return " or ".join(names)


def _got(value: object) -> str:
    return "" if value is msgspec.UNSET else f", but got {_shown(value)} instead"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _value_at(body: bytes, path: str) -> object:
    """What the client sent at a path of msgspec, or UNSET where it cannot be said."""
    try:
        value: Any = msgspec.json.decode(body)
        for name, index in STEP.findall(path):
            value = value[name] if name else value[int(index)]
    except (LookupError, TypeError, ValueError, RecursionError):
        return msgspec.UNSET
    return msgspec.UNSET if "[...]" in path else value


def wrong_media_type(received: str) -> InferenceError:
    """The body is declared to be something other than JSON (415)."""
    shown = received[:80] or "none"
    return refuse(415, f"Unsupported media type: expected 'application/json', but got {shown!r} instead.")
