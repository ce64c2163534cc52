"""Every decision with a limit that may move: what a stop of the report's slider says is what `curate replay --set … --out RUN2` writes."""

import inspect

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from curate.replaying import replay
from curate.sweeping import sweep
from manifests.errors import Refusal
from manifests.replays import replays_path
from manifests.run import open_run
from manifests.signature import load
from tests.contracts.test_replay import PAIRWISE, build, home, measured  # noqa: F401  (fixtures)
from tests.contracts.test_stage_law import configured

LATER = [{"keep.where": {"keep": "contrast >= 40"}}, {"select.stratified": {"keep": 18, "by": "label"}}]
LIMITED = [n for n in PAIRWISE if any(inspect.getmodule(load(n, "curate")).MOVES.values())]
OTHERS = {
    "dedup.copies": {"min_score": 0.5},
    "labels.neighbours": {"min_share": 0.2, "k": 5},
    "leakage.images": {"floor_rms": 60.0, "max_distance": 64},
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [*LIMITED, "labels.neighbours"])
def test_a_stop_is_the_replay_that_it_stands_for(measured, tmp_path, name):  # noqa: F811
    stage = {name: {**configured(name, measured / "eval")[name], **OTHERS.get(name, {})}}
    run = build(measured, f"swept-{name}", [stage, *LATER], "measured")
    told = sweep(run.path, device="cpu", quiet=True)
    assert {slider["stage"] for slider in told["sliders"]} == {name} and told["done"]
    whole = pq.read_table(replays_path(run, name)).to_pylist()
    for parameter in dict.fromkeys(stop["parameter"] for stop in whole):
        stops = [stop for stop in whole if stop["parameter"] == parameter]
        assert len(stops) > 1 and sum(stop["is_run"] for stop in stops) == 1
        assert [stop["value"] for stop in stops] == sorted({stop["value"] for stop in stops})
        assert any(stop["changed"] for stop in stops if stop["refused"] is None), (
            f"the slider of {name}.{parameter} moves nothing: OTHERS above may have settings under which it does"
        )
        kind = type(open_run(run.path).stages[-3].parameters[parameter])
        for number in sorted({0, len(stops) // 2, len(stops) - 1}):
            settings, out = [f"{name}.{parameter}={kind(stops[number]['value'])!r}"], tmp_path / f"{parameter}-{number}"
            if stops[number]["refused"] is not None:
                with pytest.raises(Refusal, match="not-replayable|bad-value"):
                    replay(run.path, settings=settings, out=out, device="cpu")
                continue
            same_as_the_stop(stops[number], replay(run.path, settings=settings, out=out, device="cpu"), out)


def same_as_the_stop(stop: dict, shown: dict, out) -> None:
    """Totals, funnel, samples with another fate and the fates of those that are followed."""
    assert {status: stop[status] for status in ("kept", "dropped", "quarantined")} == {
        s: shown["counts"][s] for s in ("kept", "dropped", "quarantined")
    }
    assert stop["funnel"] == [{"stage": s["stage"], "in": s["in"], "dropped": sum(s["dropped"].values()), "left": s["left"]} for s in shown["funnel"]]
    assert stop["changed"] == sum(flow["n"] for flow in shown["flows"]["moved"])
    ledger = open_run(out).ledger(["uid", "status", "drop_stage", "drop_reason"])
    rows = {row["uid"]: (row["status"], row["drop_stage"], row["drop_reason"]) for row in ledger.to_pylist()}
    assert len(stop["held"]) > 10 and pc.count_distinct(ledger["uid"]).as_py() == len(rows)
    assert all(rows[one["uid"]] == (one["status"], one["stage"], one["reason"]) for one in stop["held"])
