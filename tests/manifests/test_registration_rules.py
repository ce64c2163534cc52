"""Registration: each rule that refuses what agrees by chance, at its limit."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from skimage import data

from manifests import placing, registration
from manifests.registration import ENOUGH
from manifests.seen import see
from manifests.surfaces import SQUARE

PHOTOS = {name: np.ascontiguousarray(getattr(data, name)()[..., :3]) for name in ("astronaut", "chelsea", "coffee")}


def test_a_motif_by_chance_needs_most_blocks():
    common = registration.Common((0.0, 0.0, 64.0, 64.0), (0.0, 0.0, 64.0, 64.0), (64.0, 64.0), True)
    planes = (np.asarray(Image.fromarray(PHOTOS["coffee"]).convert("L"))[100:164, 100:164].astype(np.int64) * 16,) * 2
    agrees = np.ones(64, bool)
    points = lambda count: placing.Proposal(float(count), 0, (1.0, 1.0, 0.0, 0.0), (0, 0, 64, 64), (0, 0, 64, 64))
    areas = points(12)._replace(areas=(0, 0))
    by_chance = lambda proposal, score, cut=True, seen=planes: registration._by_chance(proposal, replace(common, is_cut=cut), seen, agrees, score)
    assert by_chance(points(3), 0.5)
    assert not by_chance(points(3), 0.7)
    assert not by_chance(points(11), 0.5)
    assert not by_chance(areas, 0.5)
    stripes = (
        np.tile(160 * (np.arange(64) % 9), (64, 1)) + np.random.default_rng(0).integers(0, 600, (64, 64)),
    ) * 2  # worn, so nearly nothing but lines
    assert by_chance(points(3), 0.9, seen=stripes)
    assert not by_chance(points(11), 0.9, seen=stripes)
    flat = (np.add.outer(np.arange(64) ** 2, np.zeros(64, int)),) * 2
    assert by_chance(areas, 0.5, cut=False, seen=flat)
    assert not by_chance(areas, 0.7, cut=False, seen=flat)
    assert not by_chance(points(3), 0.5, cut=False, seen=flat)


@pytest.mark.parametrize(("against", "is_copy"), [(20, True), (21, False)])
def test_more_blocks_against_than_for_is_no_copy(monkeypatch, against, is_copy):
    place, shows = np.arange(64), np.ones(64, bool)
    agrees = np.isin(place, np.flatnonzero(place // 8 % 7 * (place % 8 % 7))[:20])  # inside, where the rim does not decide
    monkeypatch.setattr(registration, "_block_rows", lambda _: (8, 8))
    monkeypatch.setattr(registration, "blocks", lambda *_: (agrees, shows, shows, np.cumsum(~agrees) * ~agrees > 44 - against))
    photo = see(np.ascontiguousarray(PHOTOS["astronaut"][:320, :320]))
    whole = (0.0, 0.0, 160.0, 160.0)
    match = registration._compared(photo, photo, placing.Proposal(50.0, 0, (1.0, 1.0, 0.0, 0.0), whole, whole))
    assert (match is not None) == is_copy
    assert match is None or (match.agreeing, match.score) == (20, 20 / 64)


def as_a_whole(monkeypatch, *, cut=False, agrees=0, against=0, both=0, covered=()):
    """Whether two pictures count as one with so many of 64 blocks, the last ones against, and `covered` parts of the cells: (top, bottom, left, right)."""
    seen, most = np.ones((SQUARE, SQUARE), bool), np.arange(64)
    for top, bottom, left, right in covered:
        seen[top:bottom, left:right] = False
    fine = most < agrees, most < both, most < both, (most >= both - against) & (most < both)
    nothing = (np.zeros(16, bool),) * 4
    monkeypatch.setattr(registration, "uncovered", lambda _: seen.ravel())
    monkeypatch.setattr(registration, "blocks", lambda *_, flat=None, noise=None: fine if flat is None else nothing)
    photo = see(np.ascontiguousarray(PHOTOS["astronaut"][:320, :320]))
    common = (0.0, 0.0, 160.0, 160.0 * (0.5 if cut else 1))
    return registration._as_a_whole(photo, photo, placing.Proposal(20.0, 0, (1.0, 1.0, 0.0, 0.0), common, common, (0, 0))) is not None


def test_how_many_blocks_may_speak_against_a_whole(monkeypatch):
    monkeypatch.setattr(registration, "_block_rows", lambda _: (8, 8))
    is_one = lambda **facts: as_a_whole(monkeypatch, **facts)
    assert is_one(agrees=10, against=10, both=30)  # a third
    assert not is_one(agrees=10, against=11, both=30)
    assert is_one(cut=True, agrees=10, against=7, both=28)  # a quarter where a part is laid on another
    assert not is_one(cut=True, agrees=10, against=8, both=28)


def test_what_a_box_covers_is_excused_but_not_of_a_part(monkeypatch):
    monkeypatch.setattr(registration, "_block_rows", lambda _: (8, 8))
    box = [(8, 12, 0, 32)]  # over the blocks 16 to 23
    is_one = lambda **facts: as_a_whole(monkeypatch, both=24, agrees=10, **facts)
    assert not is_one(against=9)
    assert is_one(against=9, covered=box)
    assert not is_one(against=9, covered=box, cut=True)
    assert not is_one(against=20, covered=box)


def test_lines_of_one_alone_and_blocks_against_are_another_picture(monkeypatch):
    monkeypatch.setattr(registration, "_block_rows", lambda _: (8, 8))
    lines = [(y, y + 1, 0, 32) for y in (5, 15)]
    is_one = lambda **facts: as_a_whole(monkeypatch, **({"both": 20, "against": 1, "covered": lines} | facts))
    assert not is_one(agrees=14)
    assert is_one(agrees=15)  # three quarters
    assert is_one(agrees=14, against=0)
    assert is_one(agrees=14, covered=lines[:1])  # too few lines
    assert is_one(agrees=4, both=ENOUGH)  # too few blocks to ask for more


def test_a_thumbnail_needs_evidence(monkeypatch):
    large, small = see(PHOTOS["astronaut"][:200, :200]), see(np.ascontiguousarray(PHOTOS["chelsea"][:200:5, :200:5]))
    for alike, nats, is_found in (
        (0.95, registration.EVIDENCE + 1, True),
        (0.95, registration.EVIDENCE - 1, False),
        (registration.WORN - 0.01, 99.0, False),
    ):
        monkeypatch.setattr(registration, "likest_turn", lambda *_, alike=alike, nats=nats: (0, alike, nats))
        assert (registration._thumbnail(large, small) is not None) == is_found
        assert (registration._thumbnail(small, large) is not None) == is_found
