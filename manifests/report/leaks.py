"""The panel of leaks: for each evaluation pool which of its samples are hit, by whom, how close, and the closest pairs beside each other."""

from typing import Any

from manifests.audit.visible import number, share, visible
from manifests.leaks import BOXES, LIMITS, evaluation_sizes
from manifests.report.gallery import Pictures, card
from manifests.report.leaked import leaked
from manifests.report.panel import Inquiry, Panel, in_list

HITS_SHOWN, PAIRS_A_WAY, PAIRS = 200, 4, 24

SEEN = """SELECT split_part(shard::VARCHAR, '/', 1) AS source, count(*) FILTER (witness_pool IS NOT NULL) AS leaked, count(*) AS seen
FROM ledger WHERE status <> 'quarantined' AND NOT coalesce(drop_stage IN {earlier}, false) GROUP BY ALL ORDER BY source"""

HELD = "SELECT pool, count(*) AS n FROM evaluations GROUP BY ALL ORDER BY pool"

HIT = """SELECT pool, count(DISTINCT uid) AS samples, count(DISTINCT test) AS tests_hit, bool_and(is_complete IS NOT NULL) AS is_known
FROM leaks GROUP BY ALL ORDER BY pool"""

DROPPED = "SELECT count(DISTINCT uid) AS samples FROM leaks"

SUREST = f"coalesce(list_position({list(LIMITS)}, reason), 9)"

WAYS = f"""SELECT pool, stage, reason, count(DISTINCT uid) AS samples, count(DISTINCT test) AS tests_hit
FROM leaks GROUP BY ALL ORDER BY pool, stage, min({SUREST}), reason"""

# within a way the closest first, whichever side of the limit is close
CLOSENESS = f"{SUREST}, CASE WHEN reason IN ('copied_leak', 'vector_leak') THEN -score ELSE score END, uid, test"

KEY = "coalesce((SELECT min(e.key) FROM evaluations e WHERE e.pool = hits.pool AND e.uid = hits.test), hits.test)"

BY_TEST = f"""WITH hits AS (SELECT *, count(*) OVER (PARTITION BY pool, test) AS samples,
    bool_and(coalesce(is_complete, false)) OVER (PARTITION BY pool, test) AS all_there, row_number() OVER (PARTITION BY pool, test ORDER BY {CLOSENESS}) AS place
    FROM leaks)
SELECT pool, {{test}} AS test, samples, all_there, (SELECT min({{name}}) FROM ledger WHERE ledger.uid = hits.uid) AS closest, reason AS way, score, threshold AS "limit"
FROM hits WHERE place = 1 ORDER BY pool, {CLOSENESS} LIMIT {HITS_SHOWN}"""

CUT = "SELECT count(DISTINCT struct_pack(p := pool, t := test)) AS tests FROM leaks WHERE NOT is_complete"

CLOSEST = f"""WITH hits AS (SELECT *, row_number() OVER (PARTITION BY pool, reason ORDER BY {CLOSENESS}) AS place FROM leaks)
SELECT l.uid, l.key, {{path}} AS path, l.status, hits.stage AS drop_stage, hits.reason AS drop_reason, hits.score, hits.threshold, hits.test AS witness, hits.pool AS witness_pool,
    l.label_name, l.caption, l.shard, l."offset", l."size", hits.pool, hits.test,
    {", ".join(f"hits.{name}" for name in ("turn", "covered", *BOXES))}
FROM hits JOIN ledger l USING (uid) WHERE place <= {PAIRS_A_WAY} ORDER BY place, hits.pool, {SUREST}, l.uid LIMIT {PAIRS}"""


def leaks(inquiry: Inquiry, pictures: Pictures) -> Panel | None:
    """Every test picture that the pool shows, by evaluation pool, with the closest pairs; and it says so where nothing else was in the pool."""
    known = inquiry.has("evaluations")
    held = {row["pool"]: row["n"] for row in inquiry.ask("evaluation_pools", HELD)} if known else evaluation_sizes(inquiry.run)
    looked = inquiry.has("leaks")
    hit = {row["pool"]: row for row in inquiry.ask("hit", HIT)} if looked else {}
    if not hit and not held:
        inquiry.take()
        return None
    pools = sorted({*held, *hit})
    blocks: list[dict[str, Any]] = [{"kind": "word", "mark": "dropped", "text": text} for text in _all_gone(inquiry)]
    blocks.append(_by_pool(pools, held, hit))
    samples = 0
    if hit:
        samples = inquiry.ask("samples_that_leak", DROPPED)[0]["samples"]
        by_test = inquiry.ask("test_pictures_hit", BY_TEST.format(test=KEY if known else "hits.test", name=f"coalesce({inquiry.path}, key)"))
        blocks += [
            *_by_way(inquiry.ask("leaks", WAYS), all(row["is_known"] for row in hit.values())),
            *_pairs(inquiry, pictures),
            *_by_test(by_test, sum(row["tests_hit"] for row in hit.values())),
            *_cut(inquiry.ask("test_pictures_cut", CUT)[0]["tests"]),
        ]
    return Panel("leaks", "Leaks", "Were the tests in the pool?", _answer(pools, held, hit, samples), blocks, inquiry.take())


def _answer(pools: list[str], held: dict[str, int], hit: dict[str, Any], count: int) -> str:
    if not hit:
        return "No test picture was found in the pool."
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
    head = ["evaluation pool", "its samples", "of them hit", "share of them", "samples that show them"]
    return {"kind": "table", "name": "Test pictures that stand in the pool", "head": head, "numbers": [1, 2, 3, 4], "rows": rows}


def _by_way(ways: list[dict[str, Any]], is_known: bool) -> list[dict[str, Any]]:
    rows = [
        [visible(r["pool"], 60), visible(r["stage"], 60), {"text": visible(r["reason"], 60), "mark": "dropped"}, number(r["samples"]), number(r["tests_hit"])]
        for r in ways
    ]  # fmt: skip
    head = ["evaluation pool", "stage", "reason", "samples", "test pictures hit"]
    note = "Counted are pairs: a sample that shows several test pictures counts for each, by the surest way; it was dropped for the closest one."
    if not is_known:
        note = "This run is older than the table of all pairs: a sample counts for one test picture, the closest, and more of them may be hit."
    table = {"kind": "table", "name": "How they were found", "head": head, "numbers": [3, 4], "rows": rows}
    return [table, {"kind": "text", "class": "note", "text": note}] if rows else []


def _cut(count: int) -> list[dict[str, Any]]:
    """A note where the run does not hold every sample that shows a test picture."""
    if not count:
        return []
    named = "One test picture is" if count == 1 else f"{count:,} test pictures are"
    text = (
        f"{named} shown by more samples than the run holds pairs of (max_hits): the closest are there. Which test pictures are hit is known of all."
    )
    return [{"kind": "text", "class": "note", "text": text}]


def _pairs(inquiry: Inquiry, pictures: Pictures) -> list[dict[str, Any]]:
    """The closest pairs of each pool and way, beside each other; verified copies also laid alike, with what was done."""
    surest, found = list(LIMITS), inquiry.look_up(CLOSEST.format(path=inquiry.path))
    found.sort(key=lambda row: (row["pool"], surest.index(row["drop_reason"]) if row["drop_reason"] in surest else 9))
    rows = []
    for row in found:
        shown = card(inquiry, pictures, row)
        if "w" in shown:
            title = f"{visible(row['drop_reason'], 40)}, score {number(row['score'])}"
            pool = shown["w"].get("pool", "a test")
            cards = [{**shown, "role": "dropped"}, {**shown["w"], "role": f"in {pool}"}]
            if row["drop_reason"] == "copied_leak" and row["turn"] is not None:
                change = leaked(row, row)
                title += f": {visible(change.sentence, 200)}"
                both = pictures.of_both(change) or []
                roles = ("what both show", f"the same, in {pool}")
                cards += [{**one, "t": part, "role": role} for one, part, role in zip(cards, both, roles, strict=False)]
            rows.append({"title": title, "cards": cards, "more": ""})
    text = "The closest pairs of every pool and reason: the sample that was dropped, and the test picture that it shows."
    if any(len(row["cards"]) > 2 for row in rows):
        text += " Under verified copies stands the part that both show, laid alike."
    heading = {"kind": "text", "class": "note", "text": text}
    return [heading, {"kind": "pictures", "rows": rows, "paired": True}] if rows else []


def _by_test(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    if not rows:
        return []
    table = [
        [
            visible(r["test"], 60),
            visible(r["pool"], 60),
            number(r["samples"]) if r["all_there"] else f"{number(r['samples'])} or more",
            visible(r["closest"], 60),
            visible(r["way"], 60),
            number(r["score"]),
            number(r["limit"]),
        ]
        for r in rows
    ]
    name = "Every test picture that is hit" if len(rows) == count else f"The {len(rows):,} test pictures that are hit closest, of {count:,}"
    head = ["test picture", "evaluation pool", "samples that show it", "the closest of them", "reason", "score", "limit"]
    return [{"kind": "table", "name": name, "head": head, "numbers": [2, 5, 6], "rows": table, "folded": True}]
