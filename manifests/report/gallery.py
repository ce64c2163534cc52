"""Pictures: small copies within a budget of bytes, and the cards that show a dropped sample beside the one that decided."""

import base64
from typing import Any

import numpy as np

from manifests import images
from manifests.audit.explain import evaluation_names
from manifests.audit.query import connect
from manifests.audit.visible import number, visible
from manifests.errors import Refusal
from manifests.report.copies import Change, changes, laid_alike
from manifests.report.leaked import WithTests, leaked_changes
from manifests.report.panel import Inquiry, Panel, in_list
from manifests.run import Run

SIDE = 128  # pixels, the longer side
CARDS_A_REASON, MOST_CARDS, KEPT_CARDS = 60, 480, 48
CAPTION, LONGEST = 280, 1000  # characters of a caption, and of a path

PER_REASON = """SELECT status, drop_stage AS stage, drop_reason AS reason, count(*) AS n
FROM ledger GROUP BY ALL ORDER BY status, stage, n DESC, reason"""

COUNTS = """SELECT status, drop_stage AS stage, drop_reason AS reason, label_name AS class, split_part(shard::VARCHAR, '/', 1) AS source, count(*) AS n
FROM ledger GROUP BY ALL ORDER BY ALL"""

SAMPLED = """SELECT min(uid, {half}) AS by_uid,
       min(struct_pack(far := abs(score - threshold), uid := uid), {half}) FILTER (score IS NOT NULL AND threshold IS NOT NULL) AS by_limit
FROM ledger GROUP BY status, drop_stage, drop_reason"""

ROWS = """SELECT uid, key, {path} AS path, status, drop_stage, drop_reason, score, threshold, witness, witness_pool, label_name, caption, shard, "offset", "size"
FROM ledger WHERE uid IN {uids}"""

WITNESS = """SELECT uid, key, {path} AS path, status, drop_stage, shard, "offset", "size"
FROM ledger WHERE uid = '{uid}' LIMIT 1"""


class Pictures:
    """Small copies of pictures as data URLs, each once, until `budget` bytes are spent."""

    def __init__(self, run: Run, budget: int) -> None:
        self.run, self.left, self._with_tests = run, budget, WithTests(run.path)
        self.urls: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.refused = 0
        self._index: dict[tuple[str | None, str], int | None] = {}
        self.why: dict[str, str] = {}

    def of(self, row: dict[str, Any]) -> int | None:
        """The number of the picture of a ledger row; None where it cannot be shown (`why` says so) or the budget is spent."""
        return self._once(None, row["uid"], lambda: self.run.payload(row["shard"], row["offset"], row["size"]))

    def of_evaluation(self, pool: str, uid: str) -> int | None:
        """The number of the picture of an evaluation sample."""
        return self._once(pool, uid, lambda: self.run.evaluation_payload(pool, uid))

    def of_both(self, change: Change) -> list[int] | None:
        """The numbers of the two pictures of what a copy and its witness both show; None where they cannot be shown or the budget is spent."""
        if self.left <= 0:
            self.refused += 2
            return None
        both = laid_alike(self._with_tests, change, SIDE)
        return None if both is None else [self.add(part) for part in both]

    def _once(self, pool: str | None, uid: str, read: Any) -> int | None:
        if (pool, uid) not in self._index:
            self._index[pool, uid] = self._made(uid, read)
        return self._index[pool, uid]

    def _made(self, uid: str, read: Any) -> int | None:
        if self.left <= 0:
            self.refused += 1
            return None
        try:
            data = read()
            if data is None:
                raise images.Undecodable("no_payload")
            small = small_copy(data)
        except images.Undecodable as error:
            self.why[uid] = error.reason
            return None
        except (OSError, KeyError, TypeError, Refusal):
            self.why[uid] = "the pool cannot be read"
            return None
        return self.add(small)

    def add(self, small: np.ndarray) -> int:
        """Take a small picture in; returns its number."""
        url = "data:image/webp;base64," + base64.b64encode(images.encode_webp(small, 60 if max(small.shape[:2]) > 64 else 85)).decode()
        self.left -= len(url)
        self.urls.append(url)
        self.sizes.append((small.shape[1], small.shape[0]))
        return len(self.urls) - 1


def small_copy(data: bytes) -> np.ndarray:
    """The picture with its longer side at most `SIDE` pixels, upright; smaller ones as they are. Raises `Undecodable`."""
    picture = images.upright(images.visible(data, min_side=SIDE), images.header(data).orientation)
    height, width = picture.shape[:2]
    scale = SIDE / max(height, width)
    return picture if scale >= 1 else images.resize(picture, max(1, round(height * scale)), max(1, round(width * scale)))


def gallery(inquiry: Inquiry, pictures: Pictures) -> Panel:
    """Cards of every reason: half of them nearest the limit, half by uid (which is a hash: a fair sample), and some kept samples to compare."""
    reasons = inquiry.ask("reasons", PER_REASON)
    counts = inquiry.look_up(COUNTS)
    if len(counts) > 5000:  # too many to carry: the filters of class and source count cards only
        counts = [{**row, "class": None, "source": None} for row in reasons]
    rows = _sample(inquiry, len(reasons))
    cards = [card(inquiry, pictures, row) for row in rows]
    _lives(inquiry, cards)
    _copies(inquiry, pictures, rows, cards)
    total = sum(row["n"] for row in reasons)
    dropped = sum(row["n"] for row in reasons if row["status"] == "dropped")
    notes = []
    if len(cards) < total:
        notes.append(
            f"{len(cards):,} of {total:,} samples have a card: of every reason half are nearest the limit and half are drawn by uid. Any other: manifests explain RUN KEY."
        )
    if pictures.refused:
        notes.append(f"{pictures.refused:,} pictures were left out to keep this page small.")
    options = [{
        "value": f"{r['status']}|{r['stage'] or ''}|{r['reason'] or ''}", "count": r["n"],
        "text": "kept" if r["status"] == "kept" else f"{visible(r['stage'], 40)}: {visible(r['reason'], 40)}",
    } for r in reasons]  # fmt: skip
    plain = [
        [r["status"], r["stage"] or "", r["reason"] or "", visible(r["class"], 60) if r["class"] is not None else "", r["source"] or "", r["n"]]
        for r in counts
    ]
    facets = {name: sorted({row[i] for row in plain if row[i]})[:200] for name, i in (("class", 3), ("source", 4))}
    block = {
        "kind": "gallery",
        "cards": cards,
        "options": options,
        "facets": facets,
        "counts": plain,
        "total": total,
        "notes": notes,
        "run": visible(inquiry.run.path.name, 60),
    }
    return Panel(
        "gallery",
        "Show me",
        "Show me",
        f"{dropped:,} dropped samples, each beside the one that decided where there was one.",
        [block],
        inquiry.take(),
    )


def sampled(run: Run) -> list[str]:
    """The uids, sorted, of the samples that get a card."""
    with connect(run) as connection:
        inquiry = Inquiry(run, connection)
        return sorted({row["uid"] for row in _sample(inquiry, len(inquiry.look_up(PER_REASON)))})


def _sample(inquiry: Inquiry, groups: int) -> list[dict[str, Any]]:
    """Ledger rows of the samples that get a card: every reason in turn, in the order of the funnel, each nearest its limit first."""
    half = max(4, min(CARDS_A_REASON, MOST_CARDS // max(groups, 1)) // 2)
    uids: list[str] = []
    for row in inquiry.look_up(SAMPLED.format(half=half)):
        uids += [near["uid"] for near in row["by_limit"] or []] + (row["by_uid"] or [])
    if inquiry.run.stages:
        uids += inquiry.look_up(f"SELECT min(uid, {KEPT_CARDS}) AS u FROM ledger WHERE status = 'kept'")[0]["u"] or []
    rows = inquiry.look_up(ROWS.format(path=inquiry.path, uids=in_list(sorted(set(uids)))))
    order = {stage.id: i for i, stage in enumerate(inquiry.run.stages)}
    fate = {"dropped": 0, "quarantined": 1, "kept": 2}

    def place(row: dict[str, Any]) -> tuple[Any, ...]:
        far = abs(row["score"] - row["threshold"]) if row["score"] is not None and row["threshold"] is not None else float("inf")
        return fate.get(row["status"], 3), order.get(row["drop_stage"], 99), str(row["drop_reason"]), far, row["uid"]

    rows.sort(key=place)
    turn: dict[tuple[Any, ...], int] = {}
    for row in rows:
        reason = place(row)[:3]
        turn[reason] = turn.get(reason, 0) + 1
        row["turn"] = turn[reason]
    return sorted(rows, key=lambda row: row["turn"])  # stable: within a turn the order of the funnel stays


def card(inquiry: Inquiry, pictures: Pictures, row: dict[str, Any]) -> dict[str, Any]:
    """What a card shows, short names because there are hundreds; all text is made visible here."""
    found: dict[str, Any] = {
        "u": row["uid"], **names(row), "st": row["status"], "s": row["drop_stage"] or "", "r": row["drop_reason"] or "", "sc": _finite(row["score"]),
        "th": _finite(row["threshold"]), "c": visible(row["label_name"], 60) if row["label_name"] is not None else "", "src": str(row["shard"]).split("/")[0],
        "cap": visible(row["caption"], CAPTION) if row["caption"] else "", "t": pictures.of(row),
    }  # fmt: skip
    if found["t"] is None:
        found["why"] = pictures.why.get(row["uid"], "left out to keep this page small")
    if row["witness"]:
        found["w"] = witness_card(inquiry, pictures, row["witness"], row["witness_pool"])
    return found


def witness_card(inquiry: Inquiry, pictures: Pictures, uid: str, pool: str | None) -> dict[str, Any]:
    """Who decided, with its picture."""
    if pool is not None:
        called = names(evaluation_names(inquiry.run, pool, uid))
        return {"u": uid, **called, "st": "evaluation", "pool": visible(pool, 60), "t": pictures.of_evaluation(pool, uid)}
    rows = inquiry.look_up(WITNESS.format(path=inquiry.path, uid=uid)) if uid.isalnum() else []
    if not rows:
        return {"u": visible(uid, 40), "k": "", "st": "missing", "t": None}
    row = rows[0]
    return {"u": uid, **names(row), "st": row["status"], "s": row["drop_stage"] or "", "t": pictures.of(row)}


def names(row: dict[str, Any]) -> dict[str, str]:
    """The key of a sample (`k`), and what it was called as a file (`p`), where it was one."""
    return {"k": visible(row["key"], 120), **({"p": visible(row["path"], LONGEST)} if row.get("path") else {})}


def _lives(inquiry: Inquiry, cards: list[dict[str, Any]]) -> None:
    """Put under each card what every decision said of it, in order."""
    by_uid: dict[str, dict[str, Any]] = {c["u"]: c for c in cards}
    for one in cards:
        one["life"] = []
    for stage in inquiry.decisions:
        view = inquiry.view(stage.id)
        if view is None:
            continue
        sql = f"SELECT uid, keep, reason, score, threshold FROM {view} WHERE keep IS NOT NULL AND uid IN {in_list(sorted(by_uid))}"
        for row in inquiry.look_up(sql):
            score = f"{number(row['score'])} (limit {number(row['threshold'])})" if row["score"] is not None and row["threshold"] is not None else ""
            by_uid[row["uid"]]["life"].append([visible(stage.id, 60), "kept" if row["keep"] else f"dropped: {visible(row['reason'], 60)}", score])


def _copies(inquiry: Inquiry, pictures: Pictures, rows: list[dict[str, Any]], cards: list[dict[str, Any]]) -> None:
    """Put on the card of each row that was dropped as a copy what was done to it, and the part that it and its witness both show."""
    found = [changes(inquiry, stage, rows) for stage in inquiry.decisions if stage.name == "dedup.copies"]
    for at, change in [pair for each in [*found, leaked_changes(inquiry, rows)] for pair in each.items()]:
        cards[at]["ch"] = visible(change.sentence, 200)
        both = pictures.of_both(change)
        if both is not None:
            cards[at]["al"] = both


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
