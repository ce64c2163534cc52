"""Panels made of pictures: the largest groups of copies, and pictures that deserve a look."""

from typing import Any

from manifests.audit.visible import number, visible
from manifests.report.gallery import Pictures, names, witness_card
from manifests.report.panel import Inquiry, Panel, in_list

GROUPS = """SELECT witness, count(*) + 1 AS size
FROM ledger WHERE status = 'dropped' AND witness IS NOT NULL AND witness_pool IS NULL
GROUP BY ALL ORDER BY size DESC, witness LIMIT 12"""

SIZES = """SELECT size, count(*) AS groups FROM (SELECT witness, count(*) + 1 AS size FROM ledger
WHERE status = 'dropped' AND witness IS NOT NULL AND witness_pool IS NULL GROUP BY witness) GROUP BY ALL ORDER BY size"""

MEMBERS = """SELECT uid, key, {path} AS path, status, drop_stage, drop_reason, score, threshold, witness, witness_pool, label_name, caption, shard, "offset", "size"
FROM ledger WHERE status = 'dropped' AND witness_pool IS NULL AND witness IN {witnesses}
QUALIFY row_number() OVER (PARTITION BY witness ORDER BY uid) <= 7 ORDER BY witness, uid"""

# name, column, condition over `samples`, where {x} is a factor of the pool's median, of white, or of one; order (worst first), what it means
RULES = [
    ("blurred", "blur", "blur < {x}", 0.05, "median", "blur", "sharpness below a twentieth of the pool's median"),
    ("dark", "brightness", "brightness < {x}", 0.1, "white", "brightness", "mean brightness below a tenth of white"),
    ("bright", "brightness", "brightness > {x}", 0.93, "white", "brightness DESC", "mean brightness above 93 % of white"),
    ("flat", "contrast", "contrast < {x}", 0.03, "white", "contrast", "hardly any contrast: blank or nearly so"),
    ("noisy", "noise", "noise > {x}", 0.9, "one", "noise DESC", "neighbouring pixels differ as much as the whole picture does"),
    ("tiny", "num_pixels", "num_pixels < {x}", 0.0625, "median", "num_pixels", "less than a sixteenth of the pool's median pixels"),
    ("odd shape", "width", "greatest(width, height) > {x} * least(width, height)", 3, "one", "least(width, height) / greatest(width, height)", "one side more than three times the other"),
    ("animated", "is_animated", "is_animated", 0, "one", "uid", "more than one frame; only the first is used"),
    ("turned by EXIF", "orientation", "orientation > {x}", 1, "one", "uid", "a reader that ignores EXIF sees it turned"),
]  # fmt: skip


NO_CROPS = (
    "Crops, frames, collages and pictures written over are not looked for here: the stage dedup.copies finds them and proves each one "
    "(curate stages dedup.copies)."
)


def groups(inquiry: Inquiry, pictures: Pictures) -> Panel | None:
    """The kept samples that stand for the most dropped ones, with some of those."""
    largest = inquiry.ask("largest_groups", GROUPS)
    sizes = inquiry.ask("group_sizes", SIZES)
    if not largest:
        inquiry.take()
        return None
    members: dict[str, list[dict[str, Any]]] = {}
    for row in inquiry.look_up(MEMBERS.format(path=inquiry.path, witnesses=in_list([g["witness"] for g in largest]))):
        members.setdefault(row["witness"], []).append(row)
    rows = []
    for group in largest:
        first = witness_card(inquiry, pictures, group["witness"], None)
        first["role"] = "witness" if first["st"] == "kept" else "witness, gone later"
        others = [_thumb(pictures, row) for row in members.get(group["witness"], [])]
        more = group["size"] - 1 - len(others)
        rows.append({"title": f"{group['size']:,} alike", "cards": [first, *others], "more": f"and {more:,} more" if more else ""})
    table = [[f"{row['size']:,}", number(row["groups"]), number(row["groups"] * (row["size"] - 1))] for row in sizes[:30]]
    blocks: list[dict[str, Any]] = [
        {"kind": "pictures", "rows": rows},
        {
            "kind": "table",
            "name": "Groups by size",
            "head": ["samples in the group", "groups", "dropped for it"],
            "numbers": [0, 1, 2],
            "rows": table,
            "folded": True,
        },
    ]
    methods = {stage.name for stage in inquiry.decisions}
    if "dedup.perceptual" in methods and "dedup.copies" not in methods:
        blocks.append({"kind": "text", "class": "note", "text": NO_CROPS})
    count = sum(row["groups"] for row in sizes)
    answer = f"{count:,} samples stand for others; the largest stands for {largest[0]['size'] - 1:,}."
    return Panel("groups", "Groups", "Which groups are the largest?", answer, blocks, inquiry.take())


def _thumb(pictures: Pictures, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "u": row["uid"],
        **names(row),
        "st": row["status"],
        "r": visible(row["drop_reason"], 60),
        "c": visible(row["label_name"], 60),
        "t": pictures.of(row),
    }


def suggestions(inquiry: Inquiry, pictures: Pictures) -> Panel | None:
    """Kept pictures that deserve a look, by simple rules over the quality measures. Nothing is decided by them."""
    there = set(inquiry.schema("samples").names)
    if not {"blur", "brightness"} <= there:
        return None
    columns = [c for c in ("blur", "num_pixels") if c in there]
    medians = inquiry.look_up("SELECT " + ", ".join(f"median({c})::DOUBLE AS {c}" for c in columns) + " FROM samples")[0]
    table, rows_of, found = [], [], []
    for name, column, rule, factor, base, order, meaning in RULES:
        if column not in there or (column in medians and medians[column] is None):
            continue
        unit = {"white": 255, "one": 1}.get(base) or float(medians[column])
        condition = rule.format(x=f"{factor * unit:.4g}")
        sql = f"SELECT count(*) AS n FROM samples WHERE status = 'kept' AND {condition}"
        count = inquiry.ask(f"suggest_{name.replace(' ', '_')}", sql)[0]["n"]
        if not count:
            continue
        found.append(f"{count:,} {name}")
        table.append([name, number(count), meaning, {"code": f'keep.where: "NOT ({condition})"'}])
        shown = inquiry.look_up(
            f'SELECT uid, key, {inquiry.path} AS path, status, drop_reason, label_name, shard, "offset", "size" FROM samples WHERE status = \'kept\' AND {condition} ORDER BY {order}, uid LIMIT 6'
        )
        rows_of.append(
            {
                "title": f"{name}: {count:,}",
                "cards": [_thumb(pictures, row) for row in shown],
                "more": f"and {count - len(shown):,} more" if count > len(shown) else "",
            }
        )
    blocks: list[dict[str, Any]] = []
    if table:
        blocks = [
            {
                "kind": "table",
                "name": "Kept, but look at them",
                "head": ["finding", "kept samples", "meaning", "a rule that would drop them"],
                "numbers": [1],
                "rows": table,
            },
            {"kind": "pictures", "rows": rows_of},
        ]
    answer = f"Suggestions only, nothing was dropped for them: {', '.join(found)}." if found else "Nothing stands out among the kept pictures."
    return Panel("suggestions", "Suggestions", "Which kept pictures deserve a look?", answer, blocks, inquiry.take())
