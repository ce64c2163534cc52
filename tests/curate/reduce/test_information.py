"""reduce.information against its rule, with values by scikit-learn."""

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import entropy as entropy_of
from sklearn.metrics import normalized_mutual_info_score

import curate
from curate.pool import Edges, Pool
from curate.reduce import information as module
from curate.reduce.information import MOVES, REASONS, information
from curate.replaying import replay
from manifests.errors import Refusal
from manifests.images import Window
from manifests.run import open_run
from tests.bad_input.fixtures import encoded, saved
from tests.mortal import through_deaths
from tests.pools import assert_lawful, png, pool_of, shuffled
from tests.small_pool import write_pool

SIDE = 16


def slices(seed: int, count: int) -> list[np.ndarray]:
    """Grey pictures (16, 16) that drift along a row, with exact copies and blanks among them."""
    rng = np.random.default_rng(seed)
    found = [rng.integers(0, 256, (SIDE, SIDE))]
    for _ in range(count - 1):
        kind = rng.integers(0, 5)
        last = found[int(rng.integers(0, len(found)))]
        changed = np.where(rng.random((SIDE, SIDE)) < rng.random(), rng.integers(0, 256, (SIDE, SIDE)), last)
        found.append(last if kind == 0 else np.full((SIDE, SIDE), rng.integers(0, 256)) if kind == 1 else changed)
    return [p.astype(np.uint8) for p in found]


def by_definition(levels, group, order, uid, fixed, min_nmi, min_entropy):
    """(kept rows, fate of each other row): its reason, score and witness."""
    bits = [entropy_of(np.bincount(row), base=2) for row in levels]
    kept, fate = [], {}
    for name in sorted(set(group)):
        walk = sorted((r for r in range(len(group)) if group[r] == name), key=lambda r: (r not in fixed, order[r], uid[r]))
        here = []
        for row in walk:
            if bits[row] < min_entropy and row not in fixed:
                fate[row] = ("low_entropy", bits[row], -1)
                continue
            near = [(-round(normalized_mutual_info_score(levels[e], levels[row]), 6), walk.index(e), e) for e in here]
            near = [n for n in near if -n[0] >= min_nmi]
            if near and row not in fixed:
                fate[row] = ("redundant", -min(near)[0], min(near)[2])
            else:
                here.append(row)
        kept += here
    return sorted(kept), fate


def check(got, levels, group, order, uid, fixed, min_nmi, min_entropy):
    kept, fate = by_definition(levels, group, order, uid, fixed, min_nmi, min_entropy)
    assert np.flatnonzero(got.keep).tolist() == kept
    for row, (reason, score, witness) in fate.items():
        assert got.reason[row] == reason
        assert got.witness[row] == witness
        assert got.score[row] == pytest.approx(score, abs=1e-6)
        assert got.threshold[row] == (min_entropy if reason == "low_entropy" else min_nmi)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 9999),
    min_nmi=st.sampled_from([0.31, 0.6, 0.85, 1.0]),
    min_entropy=st.sampled_from([0.0, 1.0, 5.0]),
    pairs=st.sampled_from([1, 9, 999]),
)
def test_the_walk_is_the_rule_to_the_last_tie(seed, min_nmi, min_entropy, pairs):
    rng, n = np.random.default_rng(seed), 12
    pictures = slices(seed, n)
    levels = [p.ravel() // 4 for p in pictures]
    group, number = rng.choice(["a", "b"], n).tolist(), rng.integers(1, 12, n).tolist()
    uid, fixed = rng.permutation(n).tolist(), np.flatnonzero(rng.random(n) < 0.1).tolist()
    pool = {"order": uid, "fixed": fixed, "payloads": [png(p) for p in pictures], "patient": group, "slice": [f"s{i}.png" for i in number]}
    given_values = {"group": "patient", "order": "slice", "side": SIDE, "min_nmi": min_nmi, "min_entropy": min_entropy}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PAIRS", pairs)
        got = information(pool_of(**pool), **given_values)

    check(got, levels, group, number, uid, fixed, min_nmi, min_entropy)
    assert got.keep[fixed].all()
    assert set(got.reason[~got.keep]) <= set(REASONS)
    at = rng.permutation(n)
    moved = information(pool_of(**shuffled(pool, at)), **given_values)
    assert moved.keep.tolist() == got.keep[at].tolist()
    assert moved.score[~moved.keep].tolist() == got.score[at][~moved.keep].tolist()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 9999), min_nmi=st.sampled_from([0.3, 0.5, 0.9]), min_entropy=st.sampled_from([0.0, 5.0]))
def test_other_thresholds_over_stored_edges_are_the_walk_of_the_rows_that_are_left(seed, min_nmi, min_entropy):
    rng, n = np.random.default_rng(seed), 14
    pictures = slices(seed, n)
    number = rng.integers(1, 12, n)
    first = information(pool_of(payloads=[png(p) for p in pictures], p=["x"] * n, slice=number), group="p", order="slice", side=SIDE, min_entropy=2.0)
    left = np.flatnonzero(rng.random(n) < 0.7)
    place = np.full(n, -1)
    place[left] = np.arange(len(left))
    a, b = place[first.edges.a], place[first.edges.b]
    both = (a >= 0) & (b >= 0)
    edges = Edges(b[both], a[both], first.edges.score[both], {"entropy": first.edges.columns["entropy"][both]})
    full = pool_of(p=["x"] * len(left), slice=number[left], order=left)
    assert MOVES == {"min_nmi": "floor_nmi", "min_entropy": "", "order": ""}
    got = information(Pool(full.uid, full.table, edges=edges), group="p", order="slice", side=SIDE, min_nmi=min_nmi, min_entropy=min_entropy)
    levels = [pictures[i].ravel() // 4 for i in left]
    check(got, levels, ["x"] * len(left), number[left], left, [], min_nmi, min_entropy)


def test_identical_blank_single_and_no_rows():
    one = png(slices(1, 1)[0])
    crowd = {"payloads": [one] * 9, "p": [i % 2 for i in range(9)], "key": [f"{i}" for i in range(9)]}
    got = information(pool_of(**crowd), group="p", min_nmi=1.0)
    assert np.flatnonzero(got.keep).tolist() == [0, 1] and (got.score[2:] == 1).all()
    assert_lawful(pool_of(**crowd), got, REASONS)
    crowd["payloads"] = [png(np.full((20, 20), 7, np.uint8))] * 9
    assert information(pool_of(**crowd), group="p").keep.sum() == 2
    got = information(pool_of(**crowd, fixed=[4]), group="p", min_entropy=0.1)
    assert np.flatnonzero(got.keep).tolist() == [4] and (got.witness == -1).all() and set(got.reason[~got.keep]) == {"low_entropy"}
    assert information(pool_of(payloads=[one], p=["x"], key=["1"]), group="p").keep.all()
    assert len(information(pool_of(payloads=[], p=[], key=[]), group="p").keep) == 0


def test_a_row_that_cannot_be_read_is_kept_unjudged():
    rows = [encoded(1), encoded(1)[:300], b"", encoded(1)]
    got = information(pool_of(payloads=rows, p=["x"] * 4, key=["1", "2", "3", "4"]), group="p")
    assert got.keep.tolist() == [True, True, True, False]
    assert got.unjudged.tolist() == [False, True, True, False]


def test_sixteen_bit_slices_are_seen_through_one_window():
    """Tissue at HU + 1024. Without a window all of it is one grey level, and the two slices are the same to it."""
    rng = np.random.default_rng(3)
    tissue = [rng.integers(900, 1250, (64, 64)).astype(np.uint16) for _ in range(2)]
    rows = {"payloads": [saved(Image.fromarray(t), "PNG") for t in tissue], "p": ["x"] * 2, "key": ["1", "2"]}
    seen = information(pool_of(**rows), group="p", window=Window(1074, 400))
    assert seen.keep.all() and (seen.columns["information_entropy"] > 5).all()
    assert information(pool_of(**rows), group="p", min_entropy=2.0).keep.sum() == 0


@pytest.mark.parametrize(
    "given_values", [{"min_nmi": 1.1}, {"floor_nmi": 0.6}, {"floor_nmi": -0.1}, {"min_entropy": 7.0}, {"side": 4}, {"side": 512}]
)
def test_bad_values_are_refused(given_values):
    with pytest.raises(Refusal, match=r"reduce.information: min_nmi .*0 <= floor_nmi <= min_nmi <= 1.*\[bad-value\]"):
        information(pool_of(payloads=[], p=[], key=[]), group="p", **given_values)


def test_more_than_the_memory_holds_is_refused():
    many = {"payloads": [encoded(1)] * 2000, "p": ["x"] * 2000, "key": ["1"] * 2000}
    with pytest.raises(Refusal, match=r"reduce.information: needs .*--memory allows 50 MiB.*\[does-not-fit\]"):
        information(pool_of(memory=50 << 20, **many), group="p")
    many = {"payloads": [encoded(1)] * 150, "p": ["x"] * 150, "key": ["1"] * 150}
    with pytest.raises(Refusal, match=r"reduce.information: needs .*\[does-not-fit\]"):  # told only by the pairs that were found
        information(pool_of(memory=(48 << 20) + 1_300_000, **many), group="p", side=8)


def test_a_build_and_its_refusals(tmp_path):
    write_pool(tmp_path / "pool")
    recipe = tmp_path / "r.yaml"

    def build(out: str, **given_values):
        stage = {"reduce.information": {"group": "group", "min_nmi": 0.3, "window": [1064, 400], **given_values}}
        recipe.write_text(yaml.safe_dump({"format": 1, "stages": ["measure.quality", stage], "shards": False}))
        return curate.build(recipe, pool=str(tmp_path / "pool"), out=tmp_path / out, workers=1, quiet=True, device="cpu")

    with pytest.raises(Refusal, match=r"r.yaml:\d+: reduce.information: window.*\[centre, width\] in stored values.*\[bad-value\]"):
        build("refused", window=[1064])
    run = build("run", min_entropy=0.5, protect="label = 1")
    rows = {r["uid"]: r for r in run.ledger().to_pylist()}
    reasons = [r["drop_reason"] for r in rows.values() if r["status"] == "dropped"]
    assert reasons.count("low_entropy") == 1 and reasons.count("redundant") >= 1
    assert all(rows[r["witness"]]["group"] == r["group"] for r in rows.values() if r["witness"])
    other = {"min_nmi": 0.4, "min_entropy": 6.0}
    again = replay(run.path, settings=[f"reduce.information.{name}={value}" for name, value in other.items()], out=tmp_path / "replayed")
    assert again["how"] == {"reduce.information": "folded"}
    assert open_run(tmp_path / "replayed").ledger().equals(build("rebuilt", protect="label = 1", **other).ledger())


def test_a_killed_decision_goes_on_to_the_same_verdicts(monkeypatch):
    monkeypatch.setattr(module, "PAIRS", 1)
    rows = {"payloads": [png(p) for p in slices(5, 16)], "p": [i % 4 for i in range(16)], "key": [str(i) for i in range(16)]}
    want = information(pool_of(**rows), group="p", side=SIDE)
    got, deaths = through_deaths(information, lambda: pool_of(**rows), group="p", side=SIDE)
    assert deaths >= 4
    assert got.keep.tolist() == want.keep.tolist() and not want.keep.all()
    for name in ("a", "b", "score"):
        assert getattr(got.edges, name).tolist() == getattr(want.edges, name).tolist()
