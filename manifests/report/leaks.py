"""The panel of leaks: for each evaluation pool which of its samples are hit, by whom, how close, and the closest pairs beside each other."""

from typing import Any

from manifests.audit.visible import number, share, visible
from manifests.report.gallery import Pictures, card
from manifests.report.panel import Inquiry, Panel, evaluation_sizes, in_list

HITS_SHOWN, PAIRS_A_WAY, PAIRS = 200, 4, 24

SEEN = """SELECT split_part(shard::VARCHAR, '/', 1) AS source, count(*) FILTER (witness_pool IS NOT NULL) AS leaked, count(*) AS seen
FROM ledger WHERE status <> 'quarantined' AND NOT coalesce(drop_stage IN {earlier}, false) GROUP BY ALL ORDER BY source"""

HELD = "SELECT pool, count(*) AS n FROM evaluations GROUP BY ALL ORDER BY pool"

HIT = """SELECT witness_pool AS pool, count(*) AS samples, count(DISTINCT witness) AS tests_hit
FROM ledger WHERE witness_pool IS NOT NULL GROUP BY ALL ORDER BY pool"""

SUREST = "coalesce(list_position(['exact_leak', 'near_leak', 'copied_leak', 'vector_leak'], drop_reason::VARCHAR), 9)"

WAYS = f"""SELECT witness_pool AS pool, drop_stage AS stage, drop_reason AS reason, count(*) AS samples, count(DISTINCT witness) AS tests_hit
FROM ledger WHERE witness_pool IS NOT NULL GROUP BY ALL ORDER BY pool, stage, min({SUREST}), reason"""

# within a way the closest first, whichever side of the limit is close
CLOSENESS = f"""{SUREST},
    CASE WHEN score <= threshold THEN score ELSE -score END, uid"""

KEY = "coalesce((SELECT min(e.key) FROM evaluations e WHERE e.pool = witness_pool AND e.uid = witness), witness)"

BY_TEST = f"""WITH hits AS (SELECT *, count(*) OVER (PARTITION BY witness_pool, witness) AS samples,
    row_number() OVER (PARTITION BY witness_pool, witness ORDER BY {CLOSENESS}) AS place FROM ledger WHERE witness_pool IS NOT NULL)
SELECT witness_pool AS pool, {{test}} AS test, samples, key AS closest, drop_reason AS way, score, threshold AS "limit"
FROM hits WHERE place = 1 ORDER BY witness_pool, {CLOSENESS} LIMIT {HITS_SHOWN}"""

CLOSEST = f"""SELECT * EXCLUDE (place) FROM (
    SELECT uid, key, status, drop_stage, drop_reason, score, threshold, witness, witness_pool, label_name, caption, shard, "offset", "size",
        row_number() OVER (PARTITION BY witness_pool, drop_reason ORDER BY {CLOSENESS}) AS place FROM ledger WHERE witness_pool IS NOT NULL)
WHERE place <= {PAIRS_A_WAY} ORDER BY place, witness_pool, {CLOSENESS} LIMIT {PAIRS}"""


def leaks(inquiry: Inquiry, pictures: Pictures) -> Panel | None:
    """Samples that show a test picture, by evaluation pool, with the closest pairs; and it says so where nothing else was in the pool."""
    known = inquiry.has("evaluations")
    held = {row["pool"]: row["n"] for row in inquiry.ask("evaluation_pools", HELD)} if known else evaluation_sizes(inquiry.run)
    hit = {row["pool"]: row for row in inquiry.ask("hit", HIT)}
    if not hit and not held:
        inquiry.take()
        return None
    ways = inquiry.ask("leaks", WAYS)
    by_test = inquiry.ask("test_pictures_hit", BY_TEST.format(test=KEY if known else "witness")) if hit else []
    pools = sorted({*held, *hit})
    blocks: list[dict[str, Any]] = [{"kind": "word", "mark": "dropped", "text": text} for text in _all_gone(inquiry)]
    blocks += [
        _by_pool(pools, held, hit),
        *_by_way(ways),
        *_pairs(inquiry, pictures),
        *_by_test(by_test, sum(row["tests_hit"] for row in hit.values())),
    ]
    return Panel("leaks", "Leaks", "Were the tests in the pool?", _answer(pools, held, hit), blocks, inquiry.take())


def _answer(pools: list[str], held: dict[str, int], hit: dict[str, Any]) -> str:
    if not hit:
        return "No test picture was found in the pool."
    count = sum(row["samples"] for row in hit.values())
    found = [
        f"{hit[p]['tests_hit']:,} of the {held[p]:,} in {visible(p, 60)}" if held.get(p) else f"{hit[p]['tests_hit']:,} in {visible(p, 60)}"
        for p in pools
        if p in hit
    ]
    named = f"{len(found):,} of {len(pools):,} evaluation pools are hit" if len(found) > 3 else "Test pictures hit: " + ", ".join(found)
    return f"{count:,} sample{' shows a test picture and was' if count == 1 else 's show a test picture and were'} dropped. {named}."


def _all_gone(inquiry: Inquiry) -> list[str]:
    """A sentence where every sample that came as far as the first test for leaks was dropped as one: of the whole pool, or of a source."""
    first = inquiry.look_up("SELECT DISTINCT drop_stage AS stage FROM ledger WHERE witness_pool IS NOT NULL")
    names = [stage.id for stage in inquiry.run.stages]
    places = [names.index(row["stage"]) for row in first if row["stage"] in names]
    if not places:
        return []
    sources = inquiry.ask("sources_seen", SEEN.format(earlier=in_list(names[: min(places)])))
    gone = [row for row in sources if row["leaked"] == row["seen"]]
    seen = sum(row["seen"] for row in sources)
    if len(gone) == len(sources):
        return [
            f"Every sample was dropped as a leak, all {seen:,} that were compared: this pool is made of test pictures, and nothing of it is left to train on."
        ]
    return [
        f"Every sample of source {visible(row['source'], 60)} was dropped as a leak, all {row['seen']:,}: it is made of test pictures."
        for row in gone
    ]


def _by_pool(pools: list[str], held: dict[str, int], hit: dict[str, Any]) -> dict[str, Any]:
    none = {"tests_hit": 0, "samples": 0}
    rows = [
        [
            visible(pool, 60), number(held.get(pool)), number(found["tests_hit"]), share(found["tests_hit"], held.get(pool, 0)), number(found["samples"]),
        ]
        for pool in pools
        for found in [hit.get(pool, none)]
    ]  # fmt: skip
    head = ["evaluation pool", "its samples", "of them hit", "share of them", "samples dropped for them"]
    return {"kind": "table", "name": "Test pictures that stand in the pool", "head": head, "numbers": [1, 2, 3, 4], "rows": rows}


def _by_way(ways: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = [
        [
            visible(r["pool"], 60),
            visible(r["stage"], 60),
            {"text": visible(r["reason"], 60), "mark": "dropped"},
            number(r["samples"]),
            number(r["tests_hit"]),
        ]
        for r in ways
    ]
    head = ["evaluation pool", "stage", "reason", "samples dropped", "test pictures hit"]
    note = "A sample counts for one test picture, the closest by the surest way; another that it shows too is not counted for it."
    table = {"kind": "table", "name": "How they were found", "head": head, "numbers": [3, 4], "rows": rows}
    return [table, {"kind": "text", "class": "note", "text": note}] if rows else []


def _pairs(inquiry: Inquiry, pictures: Pictures) -> list[dict[str, Any]]:
    """The closest pairs of each pool and way, beside each other."""
    found = sorted(enumerate(inquiry.look_up(CLOSEST)), key=lambda pair: (str(pair[1]["witness_pool"]), str(pair[1]["drop_reason"]), pair[0]))
    rows = []
    for _, row in found:
        shown = card(inquiry, pictures, row)
        if "w" in shown:
            title = f"{visible(row['drop_reason'], 40)}, score {number(row['score'])}"
            cards = [{**shown, "role": "dropped"}, {**shown["w"], "role": f"in {shown['w'].get('pool', 'a test')}"}]
            rows.append({"title": title, "cards": cards, "more": ""})
    heading = {
        "kind": "text",
        "class": "note",
        "text": "The closest pairs of every pool and reason: the sample that was dropped, and the test picture that it shows.",
    }
    return [heading, {"kind": "pictures", "rows": rows, "paired": True}] if rows else []


def _by_test(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    if not rows:
        return []
    table = [
        [
            visible(r["test"], 60),
            visible(r["pool"], 60),
            number(r["samples"]),
            visible(r["closest"], 60),
            visible(r["way"], 60),
            number(r["score"]),
            number(r["limit"]),
        ]
        for r in rows
    ]
    name = "Every test picture that is hit" if len(rows) == count else f"The {len(rows):,} test pictures that are hit closest, of {count:,}"
    head = ["test picture", "evaluation pool", "samples dropped for it", "the closest of them", "reason", "score", "limit"]
    return [{"kind": "table", "name": name, "head": head, "numbers": [2, 5, 6], "rows": table, "folded": True}]
