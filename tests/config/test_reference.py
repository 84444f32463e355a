from inference_stack.config.reference import markdown
from inference_stack.config.schema import knobs
from inference_stack.config.tree import Config


def test_every_setting_is_documented_with_its_variable() -> None:
    page = markdown()
    for knob in knobs(Config):
        assert f"| `{knob.key}` | {knob.help} |" in page
        assert f"`{knob.env}` |" in page


def test_defaults_are_shown_as_yaml() -> None:
    assert "| true or false | `true` | `--prefix-cache/--no-prefix-cache` |" in markdown()
