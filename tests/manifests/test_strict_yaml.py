"""YAML without surprises."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.errors import Refusal
from manifests.strict_yaml import line_of, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("yes", "yes"),
        ("1e-3", 0.001),
        ("1.", 1.0),
        ("-3", -3),
        ("true", True),
        ("null", None),
        ("2024-01-01", "2024-01-01"),
        ("0x1f", "0x1f"),
        ("1_000", 1000),
        ("~", None),
    ],
)
def test_scalars_mean_what_they_look_like(text, value):
    found = read_yaml(f"a: {text}", "x", "bad-recipe")["a"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", ["a: 0123", "a: 1\na: 2", "1: x", "a: [", "a: !!python/object:os.system x", "{a: 1, a: 2}"])
def test_surprises_are_refused_with_their_line(text):
    with pytest.raises(Refusal) as caught:
        read_yaml(text, "file.yaml", "bad-recipe")
    assert str(caught.value).startswith("file.yaml:")


def test_bytes_that_are_no_utf8():
    with pytest.raises(Refusal, match="UTF-8 at byte 3"):
        read_yaml(b"a: \xff", "x", "bad-pool")


@given(
    st.dictionaries(
        st.text("abcdef_", min_size=1),
        st.one_of(st.integers(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False), st.text("abc xyz"), st.none()),
    )
)
def test_what_the_writer_writes_reads_back(value):
    import yaml

    assert read_yaml(yaml.safe_dump(value), "x", "bad-recipe") == value


def test_line_of_finds_keys_and_list_items():
    text = "format: 1\nstages:\n  - a:\n  - b:\n"
    assert line_of(text, "stages", 1) == 4
    assert line_of(text, "format") == 1
    assert line_of(text, "nothing") is None
