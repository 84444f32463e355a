import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_stack.config.sizes import UNITS, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("4096", 4096), ("2GiB", 2 << 30), ("1.5 GB", 1_500_000_000), (" 512mib ", 512 << 20), ("0.5KiB", 512), ("7B", 7)],
)
def test_sizes_people_write(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "2G", "-1GiB", "GiB", "1e9", "2 GiB more", "nan"])
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        parse_size(text)


@given(st.integers(0, 10**9), st.sampled_from(sorted(UNITS)))
def test_whole_numbers_are_exact(number: int, unit: str) -> None:
    assert parse_size(f"{number}{unit}") == number * UNITS[unit]


@given(st.integers(0, 1 << 45))
def test_formatting_keeps_the_size_to_two_decimals(nbytes: int) -> None:
    assert parse_size(format_size(nbytes)) == pytest.approx(nbytes, rel=0.005)
