"""What changed from the pool to the kept samples, column by column: the distance between the two distributions, and both drawn."""

from typing import Any

import pyarrow as pa

from manifests.audit.visible import number, visible
from manifests.report import charts
from manifests.report.panel import Answer, Inquiry, Panel, named
from manifests.schema import LEDGER, is_truth

BINS = 24
MOST_NUMBERS, MOST_WORDS, MOST_VALUES = 24, 12, 2000

WORDS = """SELECT {column} AS value, count(*) AS n, count(*) FILTER (status = 'kept') AS kept
FROM samples WHERE {column} IS NOT NULL
GROUP BY ALL ORDER BY n DESC, value LIMIT {limit}"""

DISTANCE = """WITH v AS (SELECT {column} AS x, count(*) AS n, count(*) FILTER (status = 'kept') AS k FROM samples WHERE {column} IS NOT NULL GROUP BY 1),
     f AS (SELECT x, sum(n) OVER (ORDER BY x) / sum(n) OVER () AS all_below, sum(k) OVER (ORDER BY x) / nullif(sum(k) OVER (), 0) AS kept_below FROM v)
SELECT round(coalesce(max(abs(all_below - kept_below)), 0), 9) AS distance, min(x)::DOUBLE AS lo, max(x)::DOUBLE AS hi,
       (min(x) FILTER (all_below >= 0.01))::DOUBLE AS p01, (min(x) FILTER (all_below >= 0.99))::DOUBLE AS p99,
       (min(x) FILTER (all_below >= 0.5))::DOUBLE AS median_all, (min(x) FILTER (kept_below >= 0.5))::DOUBLE AS median_kept
FROM f"""

DRAWN = """SELECT least(greatest(floor(({column} - {lo}) / {width})::INT, 0), {last}) AS bin, count(*) AS n, count(*) FILTER (status = 'kept') AS kept
FROM samples WHERE {column} IS NOT NULL
GROUP BY ALL ORDER BY bin"""


def changed(inquiry: Inquiry) -> Panel | None:
    """Columns by how far the kept samples' distribution lies from the pool's: total variation for words, Kolmogorov-Smirnov for numbers."""
    numbers, words = columns_to_compare(inquiry)
    found: list[tuple[float, dict[str, Any], list[Answer]]] = []
    for name in words[:MOST_WORDS]:
        row = _words(inquiry, name)
        found += [(row[0], row[1], inquiry.take())] if row else []
        inquiry.take()
    for name in numbers[:MOST_NUMBERS]:
        row = _numbers(inquiry, name)
        found += [(row[0], row[1], inquiry.take())] if row else []
        inquiry.take()
    if not found:
        return None
    found.sort(key=lambda f: (-f[0], f[1]["name"]))
    rows = [[f[1]["name"], number(round(f[0], 3)), f[1]["what"], f[1]["words"], {"svg": f[1]["svg"]}] for f in found]
    left_out = [*numbers[MOST_NUMBERS:], *words[MOST_WORDS:]]
    head = ["column", "shift", "measured as", "pool → kept", "pool (grey) and kept (blue), shares"]
    blocks: list[dict[str, Any]] = [
        {"kind": "legend", "marks": ["before", "kept"], "words": {"before": "all samples of the pool", "kept": "the kept ones"}},
        {"kind": "table", "name": "Columns, the most changed first", "head": head, "numbers": [1], "rows": rows},
    ]
    if left_out:
        blocks.append(
            {"kind": "text", "class": "note", "text": f"{len(left_out)} more columns are not compared here: {visible(', '.join(left_out), 300)}"}
        )
    first = found[0]
    answer = f"{first[1]['name']} changed most: {first[1]['what']} {first[0]:.2f} (0 = the same distribution, 1 = nothing in common)."
    return Panel("changed", "Changes", "What changed?", answer, blocks, [a for f in found for a in f[2]])


def columns_to_compare(inquiry: Inquiry) -> tuple[list[str], list[str]]:
    """(numbers, words): measured and user columns, and the class; neither identities, places, hashes nor truth."""
    numbers, words = [], ["label_name"]
    for field in inquiry.schema("samples"):
        if field.name in LEDGER.names or is_truth(field.name):
            continue
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind):
            numbers.append(field.name)
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind):
            words.append(field.name)
    return numbers, words


def _words(inquiry: Inquiry, name: str) -> tuple[float, dict[str, Any]] | None:
    rows = inquiry.ask(f"values_of_{name}", WORDS.format(column=named(name), limit=MOST_VALUES + 1))
    if len(rows) < 2 or len(rows) > MOST_VALUES:
        return None  # one value cannot shift, and thousands are names of samples
    total, kept = sum(r["n"] for r in rows), sum(r["kept"] for r in rows)
    if not kept or 3 * len(rows) > total:
        return None
    shares = [(r["value"], r["n"] / total, r["kept"] / kept) for r in rows]
    distance = sum(abs(was - now) for _, was, now in shares) / 2
    moved = max(shares, key=lambda s: abs(s[1] - s[2]))
    told = f"{visible(moved[0], 40)}: {100 * moved[1]:.1f} % → {100 * moved[2]:.1f} %"
    top = shares[:BINS]
    svg = charts.outline([0, len(top)], [s[1] for s in top], [s[2] for s in top], f"{visible(name, 60)}: shares of the {len(top)} commonest values")
    svg = svg.replace('class="faint">0<', 'class="faint">commonest<', 1)
    return distance, {"name": visible(name, 60), "what": "total variation", "words": told, "svg": svg}


def _numbers(inquiry: Inquiry, name: str) -> tuple[float, dict[str, Any]] | None:
    row = inquiry.ask(f"distance_of_{name}", DISTANCE.format(column=named(name)))[0]
    lo, hi = row["p01"], row["p99"]
    if row["lo"] is None or row["lo"] == row["hi"] or row["median_kept"] is None:
        return None
    if lo == hi:
        lo, hi = row["lo"], row["hi"]
    width = (hi - lo) / BINS
    bins = inquiry.ask(f"shape_of_{name}", DRAWN.format(column=named(name), lo=repr(float(lo)), width=repr(width), last=BINS - 1))
    total, kept = sum(b["n"] for b in bins), sum(b["kept"] for b in bins)
    by = {b["bin"]: b for b in bins}
    before = [by[i]["n"] / total if i in by else 0.0 for i in range(BINS)]
    after = [by[i]["kept"] / kept if i in by else 0.0 for i in range(BINS)]
    svg = charts.outline([lo, hi], before, after, f"{visible(name, 60)}: pool and kept; the outermost bins hold what lies beyond")
    told = f"median {number(float(row['median_all']))} → {number(float(row['median_kept']))}"
    return float(row["distance"]), {"name": visible(name, 60), "what": "KS distance", "words": told, "svg": svg}
