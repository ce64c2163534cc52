"""manifests.verified: of proposed pairs those that are copies, pair by pair as `registration` says, whatever the rounds and the room."""

import numpy as np
import pytest

from manifests import verified as module
from manifests.hits import Groups, closest
from manifests.registration import FIELDS, register
from manifests.seen import glance
from manifests.verified import verified
from tests.manifests.test_registration import PHOTOS
from tests.manifests.vectors.test_copies import scan
from tests.pools import png

PHOTO, OTHER = PHOTOS["coffee"], PHOTOS["astronaut"]
BROKEN = b"no picture"
BOXED = OTHER[:-60, :-90].copy()
BOXED[150:300, 100:300] = 255
MINE = [png(PHOTO[40:320, 130:560]), png(BOXED), png(PHOTO), BROKEN, png(np.rot90(PHOTO)), png(PHOTO)]  # the last has the pixels of the third
THEIRS = [png(PHOTO), png(OTHER[20:, 30:]), BROKEN]


def reader(files, asked):
    def read(rows):
        asked.extend(rows.tolist())
        return iter([files[row] for row in rows.tolist()])

    return read


def look(*, asked=None, most=100, memory=1 << 30, **limits):
    left = Groups.by(np.array([0, 1, 2, 3, 4, 2]), np.array([3, 2, 5, 1, 0, 4]))  # of the two that are equal the last has the smaller uid
    right = Groups.by(np.arange(3), np.array([2, 0, 1]))
    u, v = np.divmod(np.arange(len(left) * len(right)), len(right))
    asked = ([], []) if asked is None else asked
    limits = {"floor": 0.3, "min_area": 0.35, "turned": True} | limits
    found = verified(
        u, v, (left, right), (reader(MINE, asked[0]), reader(THEIRS, asked[1])), most=most, name="copies", scan=scan, memory=memory, **limits
    )
    return found, left, right


def one_by_one(left, right, *, floor, min_area, turned):
    """(group, group) -> the match, by registering every pair of files."""
    found = {}
    for a, mine in enumerate(left.first.tolist()):
        for b, theirs in enumerate(right.first.tolist()):
            seen = glance(THEIRS[theirs]), glance(MINE[mine])
            match = None if None in seen else register(*seen)
            shares = [0] if match is None else [(r - x) * (d - t) for x, t, r, d in (match.left, match.right)]
            if match is not None and match.score >= floor and max(shares) >= min_area and (turned or match.turn == 0):
                found[a, b] = match
    return found


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize(("rounds", "memory"), [(1, 0), (4, 1 << 20), (1024, 1 << 30)])
def test_what_is_found_is_what_registering_each_pair_finds(monkeypatch, turned, rounds, memory):
    monkeypatch.setattr(module, "PAIRS", rounds)
    monkeypatch.setattr(module, "HELD", 1)
    ((u, v, distance, is_cut), seen), left, right = look(turned=turned, memory=memory)
    wanted = one_by_one(left, right, floor=0.3, min_area=0.35, turned=turned)
    assert len(wanted) > 2 and any(match.turn for match in wanted.values()) == turned
    assert list(zip(u.tolist(), v.tolist(), strict=True)) == sorted(wanted)
    assert [tuple(row) for row in seen.tolist()] == [tuple(map(float, wanted[pair].row)) for pair in sorted(wanted)]
    assert distance.tolist() == [-wanted[pair].score for pair in sorted(wanted)] == (-seen[:, FIELDS.index("score")]).tolist()
    assert not is_cut.any()


def test_a_higher_floor_and_a_larger_share_leave_fewer():
    ((u, v, distance, _), _), left, right = look()
    for limits in ({"floor": -float(np.sort(distance)[1])}, {"min_area": 1.0}):
        ((few_u, few_v, _, _), _), _, _ = look(**limits)
        wanted = one_by_one(left, right, **({"floor": 0.3, "min_area": 0.35, "turned": True} | limits))
        assert list(zip(few_u.tolist(), few_v.tolist(), strict=True)) == sorted(wanted)
        assert 0 < len(few_u) < len(u)


def test_of_many_rows_the_closest_are_recorded_and_the_sample_says_so():
    ((u, v, distance, _), seen), left, right = look()
    ((few_u, few_v, few, is_cut), few_seen), _, _ = look(most=1)
    keep = closest(u, v, distance, left.first_rank, right.first_rank, 1)
    assert list(zip(few_u.tolist(), few_v.tolist(), few.tolist(), strict=True)) == list(
        zip(u[keep].tolist(), v[keep].tolist(), distance[keep].tolist(), strict=True)
    )
    assert few_seen.tolist() == seen[keep].tolist()
    assert is_cut.tolist() == [bool((v[~keep] == g).any()) for g in range(3)]


def test_a_picture_of_the_right_is_decoded_once_where_there_is_room():
    asked = [], []
    look(asked=asked)
    assert sorted(asked[1]) == [0, 1, 2]
    assert asked[0] == [0, 1, 3, 4, 5]  # of equal ones the smaller uid stands for both
