"""One SQL expression: what it reads, what it says, and all that it may not do."""

import pyarrow as pa
import pytest

from manifests.errors import Refusal
from manifests.expression import bind, columns_of, evaluate, names_in

TABLE = pa.table(
    {
        "a": [1, 2, None],
        "label_name": pa.array(["x", "y", "x"]).dictionary_encode(),
        "W h": [1.0, 2.0, 3.0],
        "truth_x": [1, 1, 1],
        "code": pa.array([b"\0" * 8] * 3, pa.binary(8)),
        "when": pa.array([0, 1, 2], pa.timestamp("us", tz="UTC")),
    }
)


@pytest.mark.parametrize(
    ("sql", "columns", "says"),
    [
        ("a > 1", ["a"], [False, True, None]),
        ("A > 1", ["a"], [False, True, None]),
        ("a IS NULL OR label_name = 'y'", ["a", "label_name"], [False, True, True]),
        ('"W h" BETWEEN 1.5 AND 2.5', ["W h"], [False, True, False]),
        ("label_name LIKE 'x%' -- a comment", ["label_name"], [True, False, True]),
        ("a IN (1, 3)", ["a"], [True, False, None]),
        ("CASE WHEN a = 1 THEN true END", ["a"], [True, None, None]),
        ("coalesce(a, 0) = 0", ["a"], [False, False, True]),
        ("regexp_matches(label_name, '^x')", ["label_name"], [True, False, True]),
        ('hour("when") = 0', ["when"], [True, True, True]),
        ("code IS NOT NULL", ["code"], [True, True, True]),
        ("true", [], [True, True, True]),
        ("null", [], [None, None, None]),
    ],
)
def test_an_expression_names_its_columns_and_judges_each_row(sql, columns, says):
    assert columns_of(sql, TABLE.column_names, "here") == columns
    assert evaluate(sql, TABLE, "here").to_pylist() == says


@pytest.mark.parametrize(
    ("sql", "slug"),
    [
        ("", "bad-sql"),
        ("a >", "bad-sql"),
        ("1", "bad-sql"),
        ("a, a", "bad-sql"),
        ("a > 1) OR (a", "bad-sql"),
        ("a > 1; DROP TABLE live_rows", "bad-sql"),
        ("true FROM read_text('/etc/passwd')", "bad-sql"),
        ("read_text('/etc/passwd') = 'x'", "bad-sql"),
        ("EXISTS (SELECT 1 FROM read_csv('/etc/passwd'))", "bad-sql"),
        ("a IN (SELECT a FROM live_rows)", "bad-sql"),
        ("count(*) > 1", "bad-sql"),
        ("row_number() OVER () > 1", "bad-sql"),
        ("*", "bad-sql"),
        ("COLUMNS('a') > 1", "bad-sql"),
        ("a > ?", "bad-sql"),
        ("random() > 0.5", "bad-sql"),
        ('now() > "when"', "bad-sql"),
        ("getvariable('x') = 1", "bad-sql"),
        ("current_setting('memory_limit') = 'x'", "bad-sql"),
        ("current_date > DATE '2020-01-01'", "unknown-column"),
        ("CAST(label_name AS INTEGER) = 1", "bad-sql"),
        ("live_rows.a > 1", "unknown-column"),
        ("lable_name = 'x'", "unknown-column"),
        ("truth_x = 1", "truth-column"),
        ('"TRUTH_X" = 1', "truth-column"),
    ],
)
def test_what_looks_beyond_its_row_is_refused(sql, slug):
    with pytest.raises(Refusal) as refusal:
        evaluate(sql, TABLE, "recipe.yaml: keep.where")
    assert refusal.value.slug == slug
    assert str(refusal.value).startswith("recipe.yaml: keep.where: ")


def test_an_unknown_column_is_told_its_neighbour_and_never_a_truth():
    with pytest.raises(Refusal, match="label_name") as refusal:
        columns_of("lable_name = 'x'", TABLE.column_names, "here")
    assert "truth" not in str(refusal.value)


def test_an_exact_name_goes_before_a_folded_one():
    assert columns_of('"A" > 1 AND "a" > 1', ["a", "A"], "here") == ["A", "a"]


def test_an_empty_table_has_no_answers():
    assert len(evaluate("a > 1", TABLE.slice(0, 0), "here")) == 0


def test_an_expression_without_columns_speaks_of_every_row():
    assert evaluate("true", pa.table({}), "here", 3).to_pylist() == [True] * 3


TYPES = {"text": [pa.string()], "n": [pa.int64(), pa.float64()], "loose": [pa.string(), pa.int64(), pa.float64(), pa.bool_()], "code": [pa.binary(8)]}


@pytest.mark.parametrize(
    "sql",
    ["n > 1", "n % 2 = 0", "isnan(n)", "loose > 3", "lower(loose) = 'a'", "loose", "loose = 'x' OR loose2 IS NULL", "code IS NOT NULL", "true", "CAST(text AS INT) > 3", "1 / 0 > n"],
)  # fmt: skip
def test_what_one_choice_of_types_allows_is_bound(sql):
    columns = bind(sql, {**TYPES, "loose2": [pa.null()]}, "here")
    assert columns == columns_of(sql, [*TYPES, "loose2"], "here")


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("text > 3", r"^here: 'text > 3' cannot be run: Binder Error: .* \(text: string\); one true-or-false"),
        ("text > 3 + 'x'", r"\(text: string\)"),
        ("n = 'x'", r"cannot be run: Conversion Error: .* \(n: int64 or double\)"),
        ("lower(loose) = 'a' AND loose + 1 > 2", r"\(loose: string or int64 or double or bool\)"),
        ("CASE WHEN n > 1 THEN text ELSE 'b' END", r"gives string, not true or false \(n: int64 or double, text: string\)"),
        ("n + 1", r"gives int64, not true or false \(n: int64 or double\)"),
        ("3", r"'3' gives int32, not true or false; one"),
        ("sum(n) > 1", r"no function of one row"),
        ("nothing > 1", r"\[unknown-column\]$"),
    ],
)
def test_what_no_choice_of_types_allows_is_refused(sql, says):
    with pytest.raises(Refusal, match=says) as refusal:
        bind(sql, TYPES, "here")
    assert "\n" not in str(refusal.value)


def test_of_columns_of_which_too_little_is_known_nothing_is_said():
    types = dict.fromkeys("abcd", TYPES["loose"])
    assert bind("a + b + c + d > 'x' AND lower(a) = 3", types, "here") == ["a", "b", "c", "d"]


def test_names_are_mentioned_whether_they_are_columns_or_not():
    assert names_in('Blur > 1 AND "W h" = lower(x.y)', "here") == {"blur", "w h", "x"}


def test_a_column_that_is_a_word_of_sql_is_told_how_it_is_written():
    with pytest.raises(Refusal, match=r"""'group' is also a word of SQL: write the column as "group" \[bad-sql\]"""):
        columns_of("group = 'a'", ["group", "key"], "here")
    assert columns_of("\"group\" = 'a'", ["group", "key"], "here") == ["group"]
