from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_stack.config.build import Given
from inference_stack.config.flags import flags
from inference_stack.config.load import dump, load
from inference_stack.config.schema import knobs
from inference_stack.config.tree import Config, EngineConfig, ModelEntry, from_plain, to_plain
from inference_stack.core.errors import InferenceError


def write(folder: Path, text: str) -> Path:
    path = folder / "istack.yaml"
    path.write_text(text)
    return path


def flag(name: str, value: object) -> Given:
    return Given(flags()[name].path, value, name)


def refusal(text: str, folder: Path) -> str:
    with pytest.raises(InferenceError) as caught:
        load(write(folder, text), {})
    return str(caught.value)


def test_nothing_given_means_defaults() -> None:
    assert load(None, {}) == Config()


def test_each_layer_overrides_the_one_below(tmp_path: Path) -> None:
    file = write(tmp_path, "server: {port: 1, host: file, max_queue: 5}")
    environ = {"ISTACK_SERVER__PORT": "2", "ISTACK_SERVER__HOST": "env"}
    server = load(file, environ, [flag("--port", 3)]).server
    assert (server.port, server.host, server.max_queue, server.max_choices) == (3, "env", 5, 128)


def test_the_environment_may_name_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "engine: {prefix_cache: false}")
    assert not load(None, {"ISTACK_CONFIG": str(file)}).engine.prefix_cache


def test_an_empty_file_and_an_empty_section_change_nothing(tmp_path: Path) -> None:
    assert load(write(tmp_path, ""), {}) == load(write(tmp_path, "server:\n"), {}) == Config()


def test_models_are_mappings_or_text_for_short(tmp_path: Path) -> None:
    file = write(tmp_path, "models: [smollm2, chat=dir/mine.gguf, {model: org/repo, name: big}]")
    assert load(file, {}).models == (
        ModelEntry(model="smollm2"),
        ModelEntry(model="dir/mine.gguf", name="chat"),
        ModelEntry(model="org/repo", name="big"),
    )


def test_models_from_the_environment_are_separated_by_commas() -> None:
    models = load(None, {"ISTACK_MODELS": "smollm2, b=other"}).models
    assert models == (ModelEntry(model="smollm2"), ModelEntry(model="other", name="b"))


def test_an_unknown_setting_names_itself_its_origin_and_the_nearest(tmp_path: Path) -> None:
    message = refusal("server: {prot: 1}", tmp_path)
    assert "server.prot" in message
    assert "istack.yaml" in message
    assert "Did you mean server.port?" in message


def test_an_unknown_section_and_an_unknown_field_of_a_model_are_errors(tmp_path: Path) -> None:
    assert "Did you mean engine?" in refusal("engin: {max_running: 1}", tmp_path)
    assert "Did you mean name?" in refusal("models: [{model: x, nmae: y}]", tmp_path)


def test_an_unknown_variable_is_an_error() -> None:
    with pytest.raises(InferenceError, match=r"ISTACK_SERVER_PORT.*Did you mean ISTACK_SERVER__PORT"):
        load(None, {"ISTACK_SERVER_PORT": "1"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("server: {port: '80'}", "server.port: expected a whole number, not '80'"),
        ("server: {port: true}", "server.port: expected a whole number, not True"),
        ("server: {port: 70000}", "server.port: expected at most 65535"),
        ("server: {host: 1}", "server.host: expected text"),
        ("server: 8000", "server: expected settings by name"),
        ("engine: {prefix_cache: 1}", "engine.prefix_cache: expected true or false"),
        ("engine: {kv_memory: 2G}", "engine.kv_memory: expected a size"),
        ("engine: {kv_dtype: int3}", "engine.kv_dtype: expected one of auto"),
        ("engine: {pipeline_depth: 3}", "engine.pipeline_depth: expected at most 2"),
        ("server: {drain_seconds: .nan}", "server.drain_seconds: expected a finite number"),
        ("models: smollm2", "models: expected a list"),
        ("models: [3]", "models.0: expected settings by name"),
        ("[1, 2]", "expected settings by name, not list"),
        ("server: {port: [", "not valid YAML"),
    ],
)
def test_a_wrong_value_is_refused_with_what_was_expected(text: str, expected: str, tmp_path: Path) -> None:
    assert expected in refusal(text, tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"), [("8o", "ISTACK_SERVER__PORT: server.port: expected a whole number"), ("-1", "at least 0")]
)
def test_a_wrong_variable_is_named(text: str, expected: str) -> None:
    with pytest.raises(InferenceError, match=expected):
        load(None, {"ISTACK_SERVER__PORT": text})


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match="No such file"):
        load(tmp_path / "none.yaml", {})


def test_yaml_cannot_construct_objects(tmp_path: Path) -> None:
    assert "not valid YAML" in refusal("server: !!python/object/apply:os.getcwd []", tmp_path)


def test_a_whole_number_serves_as_a_float_and_a_number_as_a_size(tmp_path: Path) -> None:
    config = load(write(tmp_path, "server: {max_body_mb: 3}\nengine: {kv_memory: 1024}"), {})
    assert config.server.max_body_mb == 3.0
    assert config.engine.kv_memory == "1024"


@pytest.mark.parametrize(("text", "value"), [("yes", True), ("OFF", False), ("1", True), ("false", False)])
def test_truth_in_the_environment(text: str, value: bool) -> None:
    assert load(None, {"ISTACK_LOG__JSON": text}).log.json is value


@given(
    st.builds(
        EngineConfig, max_running=st.integers(1, 999), prefix_cache=st.booleans(), itl_target_ms=st.floats(0, 1e6)
    )
)
def test_plain_form_round_trips(engine: EngineConfig) -> None:
    config = Config(engine=engine, models=(ModelEntry(model="a", name="b"),))
    assert from_plain(to_plain(config)) == config


def test_what_is_dumped_loads_again(tmp_path: Path) -> None:
    config = Config(models=(ModelEntry(model="smollm2"),), cache_dir="ß")
    assert load(write(tmp_path, dump(to_plain(config))), {}) == config


def test_plain_form_is_checked_too() -> None:
    with pytest.raises(InferenceError, match=r"server\.port"):
        from_plain({"server": {"port": "x"}})


def test_every_setting_has_help_a_variable_and_a_default_it_would_accept() -> None:
    every = list(knobs(Config))
    assert all(knob.help.endswith(".") for knob in every)
    assert len({knob.env for knob in every}) == len(every)
    assert from_plain(to_plain(Config())) == Config()


def test_flags_are_unique_and_logs_keep_their_prefix() -> None:
    assert {"--port", "--max-running", "--log-level", "--cache-dir"} <= set(flags())
    assert len(flags()) == len(list(knobs(Config))) - 1
