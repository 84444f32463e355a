from pathlib import Path
from typing import Any

import pytest

from inference_stack.cli.bench.prompts import (
    WORDS,
    Vocabulary,
    dataset_jobs,
    random_jobs,
    read_trace,
    trace_jobs,
    vocabulary,
)
from inference_stack.cli.bench.spec import Load
from inference_stack.core.errors import InferenceError
from tests.cli.conftest import Answer

WORDS3 = Vocabulary(("a", "b", "c"), (1, 2, 3))


async def test_the_vocabulary_has_only_words_of_one_token(fake: Any) -> None:
    words = await vocabulary(Load(url=fake.url, model="m"))
    assert len(words.words) == len(words.ids) == len(set(words.ids)) > 50
    assert "court" not in words.words


async def test_a_server_that_names_the_text_content_is_understood_too(fake: Any) -> None:
    def by_content(body: dict[str, Any]) -> Answer:
        return Answer([b'{"tokens": [7]}' if "content" in body else b'{"tokens": []}'])

    fake.answers["/tokenize"] = by_content
    assert (await vocabulary(Load(url=fake.url, model="m"))).ids == (7,)


async def test_without_a_tokenizer_prompts_are_words(fake: Any) -> None:
    del fake.answers["/tokenize"]
    assert await vocabulary(Load(url=fake.url, model="m")) == Vocabulary(WORDS)


def test_random_prompts_have_the_length_and_repeat_with_the_seed() -> None:
    jobs = random_jobs(WORDS3, 5, (12, 3), as_ids=True, seed=1)
    assert [len(job.prompt) for job in jobs] == [12] * 5
    assert jobs == random_jobs(WORDS3, 5, (12, 3), as_ids=True, seed=1)
    assert jobs != random_jobs(WORDS3, 5, (12, 3), as_ids=True, seed=2)
    assert {job.output_len for job in jobs} == {3}


def test_text_prompts_have_one_word_per_token() -> None:
    (job,) = random_jobs(WORDS3, 1, (6, 1), as_ids=False, seed=0)
    assert isinstance(job.prompt, str)
    assert len(job.prompt.split()) == 6


def test_a_shared_prefix_is_shared_and_the_rest_is_not() -> None:
    first, second = random_jobs(WORDS3, 2, (60, 1), as_ids=True, seed=0, prefix=20)
    assert first.prompt[:20] == second.prompt[:20]
    assert first.prompt[20:] != second.prompt[20:]


def write(folder: Path, text: str) -> Path:
    path = folder / "data"
    path.write_text(text)
    return path


def test_a_data_set_is_repeated_to_the_number_asked_for(tmp_path: Path) -> None:
    file = write(tmp_path, '{"prompt": "x", "output_len": 2}\n\n{"messages": [{"role": "user", "content": "y"}]}\n')
    jobs = dataset_jobs(file, 3, 9)
    assert [job.output_len for job in jobs] == [2, 9, 2]
    assert jobs[1].prompt == [{"role": "user", "content": "y"}]


@pytest.mark.parametrize(
    ("text", "expected"), [("", "no prompts"), ("{", "data:1: not JSON"), ('{"p": 1}', "neither prompt")]
)
def test_a_bad_data_set_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(InferenceError, match=expected):
        dataset_jobs(write(tmp_path, text), 1, 1)


def test_a_trace_is_sorted_shifted_and_sped_up(tmp_path: Path) -> None:
    file = write(
        tmp_path, "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:04,9,2\n2024-05-10 00:00:00,5,0\n"
    )
    assert list(read_trace(file, 2.0)) == [(0.0, 5, 1), (2.0, 9, 2)]


def test_a_trace_becomes_jobs_of_its_lengths(tmp_path: Path) -> None:
    file = write(tmp_path, "timestamp,input_len,output_len\n0,4,1\n1.5,6,2\n3,8,3\n")
    jobs = trace_jobs(WORDS3, file, 2, 1.0, as_ids=True, seed=0)
    assert [(job.arrival, len(job.prompt), job.output_len) for job in jobs] == [(0.0, 4, 1), (1.5, 6, 2)]


def test_a_trace_without_the_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match="none of the columns"):
        list(read_trace(write(tmp_path, "when,what\n1,2\n"), 1.0))
