"""`curate replay RUN --sweep`: stops for the sliders of the report, each one a replay through all later stages, by the fold of `curate replay`."""

import inspect
import itertools
import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.frame import Frame
from curate.recipe import PoolPaths, ResolvedStage
from curate.recording import ledger_stages
from curate.replaying import Folded, fold, funnel, stored_run
from curate.stages import MEASURE
from curate.stored import Stored, check_measures
from manifests.errors import Refusal
from manifests.progress import Progress
from manifests.publish import locked, publish_table
from manifests.replays import STOP, all_replays, read_replays, replays_digest, replays_path, replays_stand
from manifests.run import Run, open_run
from manifests.schema import DROPPED, KEPT, QUARANTINED

A_SIDE = 4  # stops on either side of the run's own value
STEPS = 100  # stops are rounded to about this many steps between the least and the largest, so that they can be read

Fate = tuple[str, str | None, str | None]  # status, stage, reason, as in the ledger


@dataclass(frozen=True)
class Slider:
    """A limit that may move: a decision's parameter, the run's value of it, and the values to try, in order."""

    stage: ResolvedStage
    parameter: str
    value: float
    stops: list[float]


def sweep(run: str | Path, *, device: str = "auto", memory: str | int | None = None, most: int | None = None, quiet: bool = False) -> dict[str, Any]:
    """Fold a finished run again at up to nine limits of each decision that has a movable one, and store what would come of each for the report.

    Stops       the run's own limit, and four on either side at the quartiles of the stored scores there. On the side where more is dropped the last one is the
                floor down to which pairs were stored
    Guarantee   a stop's counts and fates are those of `curate replay RUN --set STAGE.PARAMETER=VALUE --out RUN2`. One that such a replay refuses is stored with
                the reason, and no slider offers it. Same run, same bytes; what stands is not made again
    most        rows x stops at most: above it nothing is folded. Default: no bound
    Writes      `replays/STAGE.parquet` in the run, one row a stop: counts, funnel, samples that change, fates of the samples with a card in the report
    Returns     the sliders with the number of stops and of refused ones; rows x stops; whether they are `done`
    Cost        a replay without its ledger a stop; what later stages look up anew in vectors comes on top
    Errors      `Refusal`: [not-replayable] where this keepset would decide the run itself otherwise; those of `replay`
    """
    path = open_run(run).path
    with locked(path):
        stored = stored_run(path)
        check_measures(stored, stored.recipe)
        sliders = [slider for stage in stored.recipe.stages for slider in _sliders(stored, stage)]
        _remove_stale(stored.run, sliders)
        work = len(stored.frame.live) * sum(len(slider.stops) for slider in sliders)
        is_done = most is None or work <= most
        todo = [slider for slider in sliders if not _stands(stored.run, slider)] if is_done else []
        if todo:
            _make(stored, todo, device, memory, quiet)
        return {"run": str(path), "sliders": [_told(stored.run, slider, is_done) for slider in sliders], "work": work, "done": is_done}


def _make(stored: Stored, todo: list[Slider], device: str, memory: str | int | None, quiet: bool) -> None:
    from manifests.report.gallery import sampled

    held = sampled(stored.run)
    everyone = stored.frame.read("identity", ["uid"])["uid"].combine_chunks()
    places = pc.index_in(pa.array(held, pa.string()), value_set=everyone).to_numpy()
    del everyone
    order = ledger_stages(stored.recipe)
    words: dict[Fate, int] = {(KEPT, None, None): 0}
    as_run = _fates(stored.frame, order, np.zeros(len(stored.frame.live), np.int32), words)
    with Progress("limits", sum(len(slider.stops) for slider in todo), "stops", stored.run.path / "events.jsonl", quiet) as progress:
        for name, sliders in itertools.groupby(todo, key=lambda slider: slider.stage.id):
            first = [stage for stage, _ in order].index(name)
            known = _fates(stored.frame, order[:first], np.zeros(len(as_run), np.int32), words)
            rows = []
            for slider, value in ((each, value) for each in sliders for value in each.stops):
                row: dict[str, Any] = {"stage": name, "parameter": slider.parameter, "value": value, "is_run": value == slider.value}
                with tempfile.TemporaryDirectory(prefix="keepset-sweep-") as folder:
                    try:
                        folded = _folded(stored, slider, value, Path(folder), device, memory)
                        code = _fates(folded.frame, order[first:], known.copy(), words)
                        rows.append(row | _counted(stored, folded, code, as_run, words) | {"held": _held(held, code[places], words)})
                    except Refusal as refusal:
                        if row["is_run"] or refusal.slug not in ("not-replayable", "bad-value"):
                            raise
                        rows.append(row | {"refused": _why(stored, refusal)})
                progress.advance()
            publish_table(replays_path(stored.run, name), pa.Table.from_pylist(rows, schema=STOP), replays_digest(stored.run, name))


def _folded(stored: Stored, slider: Slider, value: float, root: Path, device: str, memory: str | int | None) -> Folded:
    """The run with one value moved. Raises `Refusal` [not-replayable] where the run's own value gives another run: by other versions, or on other columns."""
    moved = replace(slider.stage, parameters={**slider.stage.parameters, slider.parameter: value})
    chosen = replace(stored.recipe, stages=tuple(moved if stage.id == moved.id else stage for stage in stored.recipe.stages))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a limit that drops too much is tried here, and not set
        folded = fold(stored, chosen, root, device=device, memory=memory, whole=True, link=os.symlink)
    anew = [stage for stage, how in folded.how.items() if how != "read"]
    if value == slider.value and anew:
        raise stored.refusal(anew[0], "would be decided anew: by another version, or from columns that have changed since", "a run as it was made")
    return folded


def _counted(stored: Stored, folded: Folded, code: np.ndarray, as_run: np.ndarray, words: dict[Fate, int]) -> dict[str, Any]:
    """What a stop gives in all."""
    count = np.bincount(code, minlength=len(words))
    of = {status: int(sum(count[number] for (word, _, _), number in words.items() if word == status)) for status in (KEPT, DROPPED, QUARANTINED)}
    assert of[KEPT] == int(folded.frame.live.sum())
    steps = [{**step, "dropped": sum(step["dropped"].values())} for step in funnel(stored.recipe, folded.counts)]
    return {
        **of, "changed": int((code != as_run).sum()), "funnel": [{name: step[name] for name in ("stage", "in", "dropped", "left")} for step in steps],
    }  # fmt: skip


def _held(uids: list[str], codes: np.ndarray, words: dict[Fate, int]) -> list[dict[str, Any]]:
    fates = list(words)
    return [dict(zip(("uid", "status", "stage", "reason"), (uid, *fates[code]), strict=True)) for uid, code in zip(uids, codes.tolist(), strict=True)]


def _why(stored: Stored, refusal: Refusal) -> str:
    """A refusal without the place of the run, which is no part of it."""
    allowed = f"; {refusal.allowed}" if refusal.allowed else ""
    return f"{refusal.where.removeprefix(f'{stored.run.path}: ')}: {refusal.given}{allowed}"


def _fates(frame: Frame, stages: Sequence[tuple[str, str]], code: np.ndarray, words: dict[Fate, int]) -> np.ndarray:
    """The number, in `words`, of each row's fate after `stages` (id, kind): as in the ledger, the first to take a row decides. `code` is what came before."""
    for name, kind in stages:
        column = "fault" if kind == MEASURE else "reason"
        read = frame.read(name, [column] if kind == MEASURE else ["keep", column])
        given = read[column].cast(pa.string())
        taken = given.is_valid() if kind == MEASURE else pc.equal(read["keep"], False).fill_null(False)
        gone = taken.to_numpy() & (code == 0)
        for word in sorted(pc.unique(given.filter(pa.array(gone))).to_pylist()):
            mine = gone & pc.equal(given, word).fill_null(False).to_numpy()
            code[mine] = words.setdefault((QUARANTINED if kind == MEASURE else DROPPED, name, word), len(words))
    return code


def _sliders(stored: Stored, stage: ResolvedStage) -> list[Slider]:
    """The limits of a decision that may move over what the run holds, are in force, and have scores on their sides."""
    if stage.kind == MEASURE:
        return []
    moves: dict[str, str] | None = getattr(inspect.getmodule(stage.function), "MOVES", None)
    if moves is None and stage.reads(PoolPaths):  # without stored pairs another limit would have to look at pictures
        return []
    limits = (
        [name for name, floor in moves.items() if floor] if moves is not None else [n for n in stage.parameters if n.startswith(("min_", "max_"))]
    )
    seen = stored.frame.read(stage.id, ["threshold", "score"])
    in_force = pc.unique(seen["threshold"].drop_null()).to_pylist()
    found = []
    for name in limits:
        value = stage.parameters[name]
        several = moves is not None and len(limits) > 1  # then each has pairs of its own, whichever decided
        if not isinstance(value, int | float) or not (several or value in in_force):
            continue
        if moves is None:
            scores, floor = seen["score"].drop_null().to_numpy(), None
        else:
            scores, floor = _scores(stored.run.edges(stage.id), name), stage.parameters[moves[name]]
        stops = limits_to_try(value, floor, scores)
        found += [Slider(stage, name, value, stops)] if len(stops) > 1 else []
    return found


def _scores(files: list[Path], limit: str) -> np.ndarray:
    """What a limit is compared with, of all stored pairs: the column that is named as it is, or a `difference`, where the pairs were seen in several ways."""
    found = [np.zeros(0)]
    for file in files:
        names = pq.read_schema(file).names
        column = next((name for name in (limit[4:], "difference") if name in names), "score")
        found.append(pq.read_table(file, columns=[column])[column].to_numpy())
    return np.concatenate(found)


def limits_to_try(value: float, floor: float | None, scores: np.ndarray) -> list[float]:
    """The run's limit, and on either side of it those at the quartiles of the scores' distances from it; the last one towards a floor is the floor.

    A whole number has whole ones beside it; others are rounded to a readable step.
    """
    from manifests.report.charts import nice

    scores = scores[np.isfinite(scores)]
    ends = [value, *([] if floor is None else [floor]), *([scores.min(), scores.max()] if len(scores) else [])]
    step = 1 if isinstance(value, int) else nice((max(ends) - min(ends)) / STEPS)
    found = {value}
    for sign in (-1, 1):
        away = sign * (scores - value)
        away = away[away > 0]
        for share in range(1, A_SIDE + 1) if len(away) else ():
            stop = value + sign * float(np.quantile(away, share / A_SIDE, method="inverted_cdf"))
            stop = round(round(stop / step) * step, 10)
            if floor is not None and sign * (floor - value) > 0:
                stop = floor if share == A_SIDE else sign * min(sign * stop, sign * floor)
            if abs(stop - value) >= step / 2:
                found.add(int(stop) if isinstance(value, int) else float(stop))
    return sorted(found)


def _stands(run: Run, slider: Slider) -> bool:
    """Are the stops there, of the run as it is, and whole?"""
    if not replays_stand(run, slider.stage.id):
        return False
    try:
        read_replays(replays_path(run, slider.stage.id))
    except (pa.ArrowException, OSError, ValueError):
        return False
    return True


def _remove_stale(run: Run, sliders: list[Slider]) -> None:
    """Delete stops of an earlier state of the run."""
    mine = [replays_path(run, slider.stage.id) for slider in sliders if replays_stand(run, slider.stage.id)]
    for file in all_replays(run):
        if file not in mine:
            file.unlink()


def _told(run: Run, slider: Slider, is_done: bool) -> dict[str, Any]:
    found = {"stage": slider.stage.id, "parameter": slider.parameter, "stops": len(slider.stops)}
    if not is_done:
        return found
    table = read_replays(replays_path(run, slider.stage.id))
    refused = table.filter(pc.equal(table["parameter"], slider.parameter))["refused"].drop_null().to_pylist()
    return {**found, "refused": len(refused), "why": sorted(set(refused))}


def text(found: dict[str, Any]) -> str:
    """For a reader: one line a slider."""
    lines = []
    for slider in found["sliders"]:
        line = f"{slider['stage']}: {slider['parameter']} at {slider['stops']} limits"
        if slider.get("refused"):
            line += f", {slider['refused']} of them not offered ({'; '.join(slider['why'])})"
        lines.append(line)
    return "\n".join(
        [*lines, f"`manifests report {found['run']}` shows them"]
        if lines
        else ["no decision of this run has a limit that can move over what it holds"]
    )
