import json

import pytest
from statsmodels.stats.proportion import proportion_confint

from pretrain.transfer.anchors import anchored, text, wilson


@pytest.mark.parametrize(("right", "count"), [(0, 50), (7, 50), (50, 50), (9_990, 10_000)])
def test_the_interval_is_wilsons_and_has_a_width_where_all_are_right(right, count):
    lo, hi = wilson(right / count, count)
    assert (lo, hi) == pytest.approx(proportion_confint(right, count, 0.05, "wilson"), abs=1e-5)
    assert hi - lo > 0


def test_a_task_that_is_solved_is_not_shown_without_doubt():
    row = {"task": "digits", "mean": 1.0, "interval": wilson(1.0, 100), "chance": 0.1, "chosen": {}}
    lines = text([row]).splitlines()
    assert lines[1].split() == ["digits", "100.0", "[96.3,", "100.0]", "10.0"]
    assert all(len(line) == len(lines[0]) for line in lines[:2])


@pytest.mark.parametrize("prefix", ["", "checkpoint:"])
def test_a_trained_folder_has_its_anchors_however_it_is_named(prefix, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"keepset": {"resolution": 64, "backbone": "timm:test_resnet"}}))
    monkeypatch.setattr("pretrain.transfer.anchors.transfer", lambda checkpoint, tasks, **rest: checkpoint)
    found = anchored(f"{prefix}{tmp_path}", [], seed=3)
    assert found == {"checkpoint": f"{prefix}{tmp_path}", "untrained": "untrained:timm:test_resnet@64?seed=3", "pixels": "pixels:32"}
