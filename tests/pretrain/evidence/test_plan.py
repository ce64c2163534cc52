"""A plan is checked before any work, and its digest is the comparison."""

import pytest

from manifests.errors import Refusal
from pretrain.evidence.plan import check_plan, read_plan

GOOD = {
    "format": 1,
    "arms": {"full": {}, "kept": {}, "random": {}, "untrained": {}},
    "tasks": ["t"],
    "margin": {"retain": 0.98},
    "looks": [3, 5, 10],
}


def plan(**changes):
    body = {**GOOD, **changes}
    return check_plan({k: v for k, v in body.items() if v is not ...}, "plan.yaml")


def test_defaults():
    p = plan()
    assert p.seeds == 5 and p.looks == (3, 5, 10) and p.margin.task == 0.95 and p.arm("random").like == "kept" and p.arm("untrained").runs == 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "is not a plan of format 1"),
        ({"arm": {}}, "unknown field 'arm'"),
        ({"tune": {}}, "tuning one of them alone is refused"),
        ({"arms": ["full"]}, "two arms or more"),
        ({"arms": {"full": {}, "best": {}}}, "`is:` one of"),
        ({"arms": {"full": {}, "kept": {"lr": 0.1}, "untrained": {}}}, "training is the same for all arms"),
        ({"arms": {"a": {"is": "full"}, "b": {"is": "full"}}}, "two arms are full"),
        ({"arms": {"untrained": {}, "raw_pixels": {}}}, "none is trained"),
        ({"arms": {"k1": {"is": "kept"}, "k2": {"is": "kept"}, "random": {}}}, "the kept arm whose size it has"),
        ({"arms": {"full": {}, "ke/pt": {"is": "kept"}}}, "is no name"),
        ({"margin": ...}, "margin: is absent"),
        ({"margin": {"retain": 0.5}}, "above 0.5 and below 1"),
        ({"margin": {"retain": 1}}, "above 0.5 and below 1"),
        ({"margin": {"absolute": 0.7}}, "0.01 is one point"),
        ({"margin": {"retain": 0.98, "absolute": 0.01}}, "one kind of margin"),
        ({"arms": {"full": {}, "kept": {}}}, "retain needs an untrained arm"),
        ({"looks": [2, 3]}, "rising numbers of seeds from 3"),
        ({"looks": [5, 3]}, "rising"),
        ({"tasks": []}, "a list of"),
        ({"tasks": ["t", "t"]}, "two tasks carry one name"),
        ({"tasks": [{"name": "t", "metric": "f1"}]}, "what applies"),
        ({"tasks": [{"name": "t", "seen_by_selector": True}]}, "the selector saw all of them"),
        ({"weights": {"u": 1.0}}, "one number above 0"),
        ({"seeds": 0}, "a whole number from 1"),
        ({"budget": {"samples_seen": 0}}, "equal compute"),
        ({"budget": {"steps": 5}}, "equal compute"),
        ({"training": ["batch"]}, "the same for every arm"),
        ({"weights": {"t": "half"}}, "one number above 0"),
        ({"weights": ["t"]}, "one number above 0"),
        ({"objectives": "look"}, "names with their parameters"),
        ({"objectives": {"look": 3}}, "objectives: look: 3; its parameters"),
        ({"arms": {"full": {}, "kept": "runs/food"}}, "arms: kept: 'runs/food'; its options"),
        ({"arms": {"full": {"is": ["full"]}, "kept": {}}}, "`is:` one of"),
        ({"arms": [{"full": {}}, "kept"]}, "is no name"),
        ({"record": 3}, "what `compare` has noted"),
        *(
            ({"training": {"batch": 64, name: 1}}, f"training: has {name}")
            for name in ("data", "uids", "out", "seed", "samples_seen", "smallest_arm", "objective", "device")
        ),
    ],
)
def test_refused(changes, words):
    with pytest.raises(Refusal, match=words) as refused:
        plan(**changes)
    assert refused.value.slug == "bad-plan"


def test_the_digest_is_the_question():
    base = plan().digest
    assert plan(seeds=9, jobs=1, run="elsewhere").digest == base
    for changes in (
        {"margin": {"retain": 0.97}},
        {"looks": [5]},
        {"tasks": ["u"]},
        {"training": {"batch": 64}},
        {"record": {"sets": {"kept": "other"}}},
    ):
        assert plan(**changes).digest != base


def test_design_is_the_digest_without_margin_and_looks():
    assert plan(margin={"absolute": 0.01}, looks=[4]).design() == plan().design()


def test_no_margin_is_needed_without_a_full_arm():
    assert plan(arms=["kept", "random"], margin=...).margin is None


def test_files(tmp_path):
    with pytest.raises(Refusal, match="is not there"):
        read_plan(tmp_path / "none.yaml")
    (tmp_path / "twice.yaml").write_text("format: 1\nformat: 1\n")
    with pytest.raises(Refusal, match="twice.yaml:2"):
        read_plan(tmp_path / "twice.yaml")
