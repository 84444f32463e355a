import io
import json
from typing import Any

import pytest
from rich.console import Console

from inference_stack.cli.background import free_port
from inference_stack.cli.chat import ChatClient, Conversation, Options
from inference_stack.cli.run import Terminal, run_chat
from inference_stack.core.errors import InferenceError
from inference_stack.core.seams import SystemClock
from tests.cli.conftest import Answer, event, stream


class Screen:
    """A chat with the fake server, and what it printed."""

    def __init__(self, fake: Any, system: str = "") -> None:
        self.text = io.StringIO()
        client = ChatClient(fake.url + "/v1", Options(max_tokens=3, seed=4))
        self.terminal = Terminal(Console(file=self.text, width=200), client, "first", system, SystemClock())


def say(fake: Any, *texts: str) -> None:
    fake.answers["/v1/chat/completions"] = lambda body: stream(list(texts), {"completion_tokens": 2}, chat=True)


def test_an_answer_is_printed_as_it_comes_and_literally(fake: Any) -> None:
    say(fake, "Hel", "lo [bold]", " wörld")
    screen = Screen(fake)
    screen.terminal.ask("hi")
    assert screen.text.getvalue() == "Hello [bold] wörld\n"


def test_the_history_goes_with_the_next_question(fake: Any) -> None:
    say(fake, "one")
    screen = Screen(fake, "be brief")
    screen.terminal.ask("first")
    screen.terminal.ask("second")
    assert fake.bodies("/v1/chat/completions")[1]["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "second"},
    ]


def test_only_what_was_asked_for_is_sent(fake: Any) -> None:
    Screen(fake).terminal.ask("x")
    (body,) = fake.bodies("/v1/chat/completions")
    assert (body["seed"], body["max_tokens"], body["stream"]) == (4, 3, True)
    assert "temperature" not in body


def test_ctrl_c_stops_the_answer_and_keeps_what_came(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    say(fake, "a", "b", "c")
    screen = Screen(fake)
    stream_text = ChatClient.stream

    def interrupted(self: ChatClient, model: str, messages: list[dict[str, str]]) -> Any:
        for count, text in enumerate(stream_text(self, model, messages)):
            if count == 2:
                raise KeyboardInterrupt
            yield text

    monkeypatch.setattr(ChatClient, "stream", interrupted)
    screen.terminal.ask("x")
    assert screen.terminal.conversation.turns[-1]["content"] == "ab"
    assert "(stopped)" in screen.text.getvalue()


def test_clear_forgets_the_turns_and_system_starts_again(fake: Any) -> None:
    terminal = Screen(fake, "old").terminal
    terminal.ask("x")
    assert terminal.command("/clear")
    assert terminal.conversation == Conversation("old")
    terminal.ask("x")
    assert terminal.command("/system new one")
    assert terminal.conversation == Conversation("new one")


def test_exit_ends_and_an_unknown_command_explains(fake: Any) -> None:
    screen = Screen(fake)
    assert not screen.terminal.command("/exit")
    assert screen.terminal.command("/nope")
    assert "unknown command /nope" in screen.text.getvalue()
    assert "/system TEXT" in screen.text.getvalue()


def test_input_is_read_to_its_end(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    say(fake, "yes")
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\n/clear\ntwo\n"))
    screen = Screen(fake)
    screen.terminal.talk()
    assert [turn["content"] for turn in screen.terminal.conversation.turns] == ["two", "yes"]


def test_a_refused_question_is_shown_and_the_chat_goes_on(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = json.dumps({"error": {"message": "too long"}}).encode()
    fake.answers["/v1/chat/completions"] = lambda body: Answer([refusal], 400)
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    screen = Screen(fake)
    screen.terminal.talk()
    assert screen.text.getvalue().count("the server answered 400: too long") == 2
    assert screen.terminal.conversation.turns == []


def test_an_error_inside_the_stream_is_an_error(fake: Any) -> None:
    fake.answers["/v1/chat/completions"] = lambda body: Answer([event({"error": {"message": "worker died"}})])
    with pytest.raises(InferenceError, match="worker died"):
        Screen(fake).terminal.ask("x")


def test_one_prompt_is_answered_by_a_running_server(fake: Any, capsys: pytest.CaptureFixture[str]) -> None:
    say(fake, "42")
    assert run_chat(Options(), "what?", fake.url, None) == 0
    assert capsys.readouterr().out == "42\n"
    assert fake.bodies("/v1/chat/completions")[0]["model"] == "first"


def test_a_model_that_the_server_has_not_is_refused(fake: Any) -> None:
    with pytest.raises(InferenceError, match="other"):
        run_chat(Options(model="other"), "x", fake.url, None)


def test_no_server_is_one_clear_error() -> None:
    with pytest.raises(InferenceError, match="no answer from"):
        run_chat(Options(), "x", f"http://127.0.0.1:{free_port()}", None)
