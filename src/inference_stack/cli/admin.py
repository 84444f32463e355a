"""`istack nodes` and `istack drain`: ask a gateway's administrators' API.

Knows HTTP; what is asked for is decided in `gateway.admin`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from inference_stack.core.errors import SERVER_ERROR, ErrorInfo, InferenceError

Url = Annotated[str, typer.Option(help="A gateway's administrators' API, as --admin-port opens it.")]
Token = Annotated[Path | None, typer.Option(help="File with the bearer token.", show_default=False)]
DEFAULT_URL = "http://127.0.0.1:8001"


def ask(method: str, url: str, path: str, token: Path | None, body: dict[str, object] | None = None) -> Any:
    """What the API answers. Raises `InferenceError`."""
    import httpx

    headers = {} if token is None else {"authorization": f"Bearer {token.expanduser().read_text().strip()}"}
    try:
        answer = httpx.request(method, f"{url.rstrip('/')}/admin/v1{path}", headers=headers, json=body, timeout=10)
    except httpx.HTTPError as error:
        info = ErrorInfo(message=f"cannot reach {url}: {error}", type=SERVER_ERROR, code="unreachable", status=503)
        raise InferenceError(info) from error
    if answer.is_error:
        raise InferenceError(ErrorInfo(message=_message(answer), status=answer.status_code))
    return answer.json()


def _message(answer: Any) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{answer.url}: status {answer.status_code}"


def nodes(url: Url = DEFAULT_URL, token: Token = None) -> None:
    """List the nodes that a gateway has in reach."""
    from rich.console import Console
    from rich.table import Table

    table = Table("node", "address", "state", "models", "workers", "restarts", "requests", box=None)
    for node in ask("GET", url, "/nodes", token):
        state = "draining" if node["draining"] else "ready" if node["ready"] else "not ready"
        workers, restarts = len(node["workers"]), sum(one["restarts"] for one in node["workers"])
        models = ", ".join(node["models"])
        trouble = node["error"] or "; ".join(node.get("refused", ()))  # which older gateways do not tell
        row = (node["node"], node["address"], trouble or state, models, workers, restarts, node["requests"])
        table.add_row(*map(str, row))
    Console().print(table)


def drain(
    node: Annotated[str, typer.Argument(help="A node's name or address.")],
    seconds: Annotated[float, typer.Option(min=0, help="How long its requests may go on before they move.")] = 30.0,
    undo: Annotated[bool, typer.Option("--undo", help="Let it take requests again.")] = False,
    url: Url = DEFAULT_URL,
    token: Token = None,
) -> None:
    """Take nothing new on a node; what runs there ends or moves."""
    if undo:
        ask("POST", url, f"/nodes/{node}/undrain", token)
    else:
        ask("POST", url, f"/nodes/{node}/drain", token, {"seconds": seconds})
    print(f"{node} {'takes requests again' if undo else 'drains'}")
