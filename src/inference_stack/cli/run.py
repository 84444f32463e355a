"""`istack run`: a chat in the terminal. Ctrl-C stops an answer, not the program; Ctrl-D or /exit ends it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from inference_stack.cli.background import server
from inference_stack.cli.chat import ChatClient, Conversation, Options
from inference_stack.core.errors import InferenceError, model_not_found
from inference_stack.core.seams import Clock, SystemClock

HELP = """/exit          leave (also Ctrl-D)
/clear         forget the conversation
/system TEXT   set the system prompt and start again; without TEXT, show it
/help          this list
Ctrl-C stops an answer."""


class Terminal:
    """The loop between a person and a chat client."""

    def __init__(self, console: Console, client: ChatClient, model: str, system: str, clock: Clock) -> None:
        self._console = console
        self._client = client
        self._model = model
        self._clock = clock
        self.conversation = Conversation(system)

    def ask(self, question: str) -> None:
        """Print the answer as it comes, and remember the exchange; one that was stopped is remembered as far as it came."""
        parts: list[str] = []
        begun = self._clock.now()
        stream = self._client.stream(self._model, self.conversation.asking(question))
        try:
            for text in stream:
                parts.append(text)
                self._console.out(text, end="", highlight=False)
        except KeyboardInterrupt:
            self._console.print(" [dim](stopped)[/dim]", end="")
        finally:
            stream.close()  # type: ignore[attr-defined]
            self._console.print()
        self.conversation.answered(question, "".join(parts))
        self._account(self._clock.now() - begun)

    def _account(self, seconds: float) -> None:
        tokens = self._client.usage.get("completion_tokens")
        if tokens and self._console.is_terminal:
            self._console.print(f"[dim]{tokens} tokens, {tokens / seconds:.1f} tokens/s[/dim]")

    def command(self, line: str) -> bool:
        """Obey a line that begins with a slash; False when it ends the chat."""
        name, _, text = line.partition(" ")
        if name in ("/exit", "/quit", "/bye"):
            return False
        if name == "/clear":
            self.conversation.clear()
        elif name == "/system" and text.strip():
            self.conversation = Conversation(text.strip())
        elif name == "/system":
            self._console.print(self.conversation.system or "(none)", markup=False)
        else:
            self._console.print(HELP if name == "/help" else f"unknown command {name}\n{HELP}", markup=False)
        return True

    def talk(self) -> None:
        """Read and answer until the end of input."""
        while (line := self._read()) is not None:
            if line.startswith("/"):
                if not self.command(line):
                    return
            elif line:
                self._try(line)

    def _try(self, question: str) -> None:
        try:
            self.ask(question)
        except InferenceError as error:
            self._console.print(f"[red]{type(error).__name__}[/red]: ", end="")
            self._console.print(str(error), markup=False)

    def _read(self) -> str | None:
        try:
            return input(">>> " if self._console.is_terminal else "").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            self._console.print("\n[dim]/exit or Ctrl-D leaves[/dim]")
            return ""


@contextmanager
def _endpoint(options: Options, url: str, config: Path | None, console: Console) -> Iterator[str]:
    if url:
        yield url
        return
    from inference_stack.cli.models import fetch_configured

    model = options.model or "smollm2"
    fetch_configured(model, config)
    starting = console.status(f"starting {model} …")
    starting.start()
    try:
        with server(model, config) as address:
            starting.stop()
            yield address
    finally:
        starting.stop()


def _served(client: ChatClient, wanted: str, ours: bool) -> str:
    """The name to use in requests. Our own server has one model, whatever it calls it."""
    names = client.models()
    if wanted in names or not names:
        return wanted
    if wanted and not ours:
        raise model_not_found(wanted)
    return names[0]


def run_chat(options: Options, prompt: str | None, url: str, config: Path | None) -> int:
    """Chat until the end of input, or answer `prompt` and return; the exit status."""
    console = Console(highlight=False)
    with _endpoint(options, url, config, Console(stderr=True)) as address:
        client = ChatClient(address, options)
        try:
            model = _served(client, options.model, ours=not url)
            terminal = Terminal(console, client, model, options.system, SystemClock())
            if prompt is not None:
                terminal.ask(prompt)
                return 0
            if sys.stdin.isatty():
                import readline  # noqa: F401  line editing and history in `input`

                console.print(f"[bold]{model}[/bold]  [dim]/help for commands, /exit or Ctrl-D to leave[/dim]")
            terminal.talk()
        finally:
            client.close()
    return 0
