"""A signature is the configuration: checked, defaulted, described, and never guessed at."""

from typing import Literal

import pytest

from curate.pool import Columns, Share
from manifests.errors import Refusal
from manifests.signature import Column, check, convert, describe, first_sentence, parameters, plain_value


def method(
    pool: object,
    *,
    vectors: Column,
    keep: Share,
    k: int = 5,
    rate: float = 0.5,
    mode: Literal["near", "far"] = "near",
    names: list[str] | None = None,
) -> Columns:
    """A method."""
    return {}


def test_defaults_are_filled_and_values_checked():
    found = check(method, {"vectors": "clip", "keep": 0.5}, "r.yaml")
    assert found == {"vectors": "clip", "keep": Share(fraction=0.5), "k": 5, "rate": 0.5, "mode": "near", "names": None}
    assert check(method, {"vectors": "v", "keep": 3, "rate": 1}, "x")["rate"] == 1.0


@pytest.mark.parametrize(
    ("given", "slug"),
    [
        ({"vectors": "v"}, "bad-value"),
        ({"vectors": "v", "keep": 0.5, "kk": 1}, "unknown-parameter"),
        ({"vectors": 3, "keep": 0.5}, "bad-value"),
        ({"vectors": "v", "keep": 0.0}, "bad-value"),
        ({"vectors": "v", "keep": True}, "bad-value"),
        ({"vectors": "v", "keep": 0.5, "k": 1.5}, "bad-value"),
        ({"vectors": "v", "keep": 0.5, "k": True}, "bad-value"),
        ({"vectors": "v", "keep": 0.5, "rate": "0.5"}, "bad-value"),
        ({"vectors": "v", "keep": 0.5, "rate": float("nan")}, "bad-value"),
        ({"vectors": "v", "keep": 0.5, "mode": "middle"}, "bad-value"),
        ({"vectors": "v", "keep": 0.5, "names": ["a", 1]}, "bad-value"),
    ],
)
def test_what_does_not_fit_is_refused(given, slug):
    with pytest.raises(Refusal) as caught:
        check(method, given, "r.yaml:3: method")
    assert caught.value.slug == slug
    assert "r.yaml:3" in str(caught.value)


def test_describe_and_plain():
    assert describe(parameters(method)["mode"].annotation) == "one of near, far"
    assert describe(parameters(method)["names"].annotation) == "a list of text or null"
    assert plain_value([Share(count=3), Share(fraction=0.25)]) == [3, 0.25]
    assert convert(None, int | None, "x") is None


@pytest.mark.parametrize(
    ("share", "rows", "kept"),
    [(Share(count=5), 3, 3), (Share(count=5), 50, 5), (Share(fraction=0.5), 5, 3), (Share(fraction=0.01), 5, 1), (Share(fraction=0.3), 0, 0)],
)
def test_a_share_of_rows(share, rows, kept):
    assert share.of(rows) == kept


def test_first_sentence_needs_no_import():
    assert first_sentence("select.kcenter", "curate").endswith(".")
