"""Registration: every turn and every kind of edit laid over its origin, and pictures that only look alike refused."""

from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageDraw
from skimage import data

from manifests import registration
from manifests.images import decode
from manifests.likeness import thumbnail, turn_pixels
from manifests.registration import ENOUGH, FIELDS, Match, aligned, register
from manifests.seen import see
from tests.pools import jpeg

PHOTOS = {name: np.ascontiguousarray(getattr(data, name)()[..., :3]) for name in ("astronaut", "chelsea", "coffee", "rocket")}


def box_of(match, side, shape):
    """A box of a match in pixels (left, top, right, bottom)."""
    return np.array(getattr(match, side)) * [shape[1], shape[0], shape[1], shape[0]]


@pytest.mark.parametrize("turn", range(8))
def test_every_turn_of_a_crop_is_laid_over_its_origin(turn):
    photo = PHOTOS["coffee"]
    part = photo[40:320, 130:560]
    back = {1: 3, 3: 1}.get(turn, turn)
    copy = np.ascontiguousarray(turn_pixels(part[None], back)[0])  # so that `turn` undoes it
    match = register(see(photo), see(copy))
    assert match.turn == turn
    assert match.score > 0.9
    assert np.abs(box_of(match, "left", photo.shape) - [130, 40, 560, 320]).max() < 8
    assert np.abs(np.array(match.right) - [0, 0, 1, 1]).max() < 0.03
    left, right = (thumbnail(p, 32).astype(float) for p in aligned(photo, copy, match.turn, match.left, match.right))
    assert np.sqrt(np.mean((left - right) ** 2)) < 12


def edits(photo):
    """(name, picture, share of the origin that is shown, share of the copy that shows it)."""
    high, wide = photo.shape[:2]
    image = Image.fromarray(photo)
    framed = np.full((high + 120, wide + 120, 3), (200, 30, 60), np.uint8)
    framed[60:-60, 60:-60] = photo
    boxed = photo.copy()
    boxed[: high // 2, : wide // 2] = 255
    sheet = np.concatenate([photo[::2, ::2], turn_pixels(PHOTOS["rocket"][None], 0)[0][: photo[::2].shape[0], : photo[:, ::2].shape[1]]], axis=1)
    frame_share = high * wide / ((high + 120) * (wide + 120))
    return [
        ("jpeg", decode(jpeg(photo, 20)), 1, 1),
        ("half", np.asarray(image.resize((wide // 2, high // 2))), 1, 1),
        ("tenth", np.asarray(image.resize((wide // 10, high // 10))), 1, 1),
        ("grey", np.asarray(image.convert("L").convert("RGB")), 1, 1),
        ("darker", (photo * 0.5 + 20).astype(np.uint8), 1, 1),
        ("crop", photo[high // 8 : -high // 8, wide // 8 : -wide // 8], 0.5625, 1),
        ("frame", framed, 1, frame_share),
        ("box", boxed, 1, 1),
        ("collage", sheet, 1, 0.5),
    ]


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee"])
def test_every_edit_is_found_and_described(name):
    photo = PHOTOS[name]
    for kind, copy, shown, own in edits(photo):
        match = register(see(photo), see(copy))
        assert match is not None, kind
        assert match.score > 0.5, kind
        areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (match.left, match.right)]
        assert abs(areas[0] - shown) < 0.08, (kind, areas)
        assert abs(areas[1] - own) < 0.08, (kind, areas)
        if kind == "box":
            assert 0.1 < match.covered < 0.4
        elif kind != "tenth":
            assert match.covered < 0.15, kind


def test_the_other_way_round_says_the_same():
    photo = PHOTOS["coffee"]
    copy = np.ascontiguousarray(np.rot90(photo[50:350, 100:500]))
    there, back = register(see(photo), see(copy)), register(see(copy), see(photo))
    assert (there.turn, back.turn) == (3, 1)
    assert np.abs(np.array(there.left) - back.right).max() < 0.03
    assert len(there.row) == len(FIELDS)
    assert there.row[:2] == (there.turn, there.score)


def test_different_pictures_are_refused():
    pieces = [p[y : y + 128, x : x + 128] for p in PHOTOS.values() for y in (0, 128) for x in (0, 128, 256)]
    seen = [see(np.ascontiguousarray(p)) for p in pieces]
    assert [(i, j) for (i, a), (j, b) in combinations(enumerate(seen), 2) if register(a, b) is not None] == []


def test_pictures_that_look_alike_are_refused():
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:160, 0:200] / 200.0
    skies = [np.clip(np.stack([90 + 60 * y, 140 + 50 * y, 220 - 10 * y], 2) + rng.normal(0, 4, (160, 200, 3)), 0, 255) for _ in range(4)]
    glows = [255 * np.exp(-a * (x - 0.5) ** 2 - b * (y - 0.4) ** 2)[..., None] * [1, 0.8, 0.6] for a, b in ((8, 8), (3, 12), (20, 4))]
    noises = [rng.integers(0, 256, (160, 200, 3)) for _ in range(3)]
    seen = [see(p.astype(np.uint8)) for p in [*skies, *glows, *noises]]
    assert all(register(a, b) is None for a, b in combinations(seen, 2))


def test_flat_and_tiny_pictures_match_their_equals_alone():
    flat = see(np.full((100, 80, 3), 128, np.uint8))
    tiny = see(PHOTOS["coffee"][:7, :9])
    assert register(flat, see(np.full((100, 80, 3), 129, np.uint8))) is None
    assert register(tiny, see(PHOTOS["coffee"][20:27, :9])) is None
    assert register(flat, see(np.full((50, 40, 3), 128, np.uint8))).agreeing == 0  # one to the eye, and nothing to compare
    assert register(flat, see(PHOTOS["coffee"])) is None


def test_a_picture_is_all_of_itself():
    for photo in PHOTOS.values():
        match = register(see(photo), see(photo.copy()))
        assert (match.turn, match.score, match.covered, match.left, match.right) == (0, 1.0, 0.0, (0, 0, 1, 1), (0, 0, 1, 1))
        assert match.agreeing >= ENOUGH


def smooth(seed, high=200, wide=260):
    """A blurred picture: waves of a third of a side and more, and nothing finer."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:high, 0:wide] / 200.0
    waves = [rng.normal(0, 1, 3) * np.cos(rng.uniform(0, 8) * x + rng.uniform(0, 8) * y + rng.uniform(0, 7))[..., None] for _ in range(8)]
    return np.clip(130 + 18 * sum(waves) + rng.normal(0, 1, (high, wide, 3)), 0, 255).astype(np.uint8)


def framed(picture, edge=30, colour=255):
    return np.pad(picture, ((edge, edge), (edge, edge), (0, 0)), constant_values=colour)


BLURRED = [smooth(seed) for seed in range(6)]


@pytest.mark.parametrize("turn", range(8))
def test_a_blurred_picture_is_found_in_every_turn_and_cropped(turn):
    photo = BLURRED[0]
    copy = turn_pixels(photo[None, 10:190, 20:250], {1: 3, 3: 1}.get(turn, turn))[0]
    match = register(see(photo), see(np.ascontiguousarray(copy)))
    assert match.turn == turn
    assert match.score > 0.9
    assert match.covered < 0.1
    assert np.abs(box_of(match, "left", photo.shape) - [20, 10, 250, 190]).max() < 8


def test_blurred_pictures_are_not_each_other_framed_or_not():
    seen = [see(p) for p in [*BLURRED, *map(framed, BLURRED)]]
    found = [(i, j) for (i, a), (j, b) in combinations(enumerate(seen), 2) if register(a, b) is not None]
    assert found == [(i, i + 6) for i in range(6)]


@pytest.mark.parametrize("count", [2, 4])
def test_a_collage_is_a_copy_of_itself_as_a_whole_not_by_one_of_its_parts(count):
    parts = [PHOTOS[name][:240, :240] for name in sorted(PHOTOS)[:count]]
    sheet = np.concatenate([np.concatenate(parts[i : i + 2], axis=1) for i in range(0, count, 2)])
    for other in (sheet, decode(jpeg(sheet, 40)), sheet[::2, ::2]):
        match = register(see(sheet), see(other))
        assert match.score > 0.9
        assert np.abs(np.array([match.left, match.right]) - [0, 0, 1, 1]).max() < 0.02


def test_of_two_sure_matches_the_one_of_the_larger_area_counts(monkeypatch):
    sheet = np.concatenate([PHOTOS["coffee"][:160, :130], PHOTOS["chelsea"][:160, 100:190], PHOTOS["astronaut"][:160, 150:270]], axis=1)
    first = registration.by_areas
    parts_first = lambda *both: [p._replace(weight=1e6) for p in sorted(first(*both), key=lambda p: p.areas, reverse=True)]
    monkeypatch.setattr(registration, "by_areas", parts_first)
    match = register(see(sheet), see(decode(jpeg(sheet, 90))))
    assert np.abs(np.array([match.left, match.right]) - [0, 0, 1, 1]).max() < 0.02


@pytest.mark.parametrize("number", [3, 4])
@pytest.mark.parametrize("contrast", [0.25, 0.4])
def test_a_box_outweighs_a_dim_picture_but_not_the_cells_beside_it(number, contrast):
    dim = (150 + contrast * (BLURRED[number].astype(float) - 150)).astype(np.uint8)
    for left, right in ((dim, boxed(dim, 120, 100, 130, 90)), (boxed(dim, 120, 100, 130, 90), dim)):
        match = register(see(left), see(right))
        assert match.turn == 0
        assert 0.15 < match.covered < 0.4


def boxed(picture, left, top, wide, high):
    """With a box of lines, as of text, over it."""
    found = picture.copy()
    found[top : top + high, left : left + wide] = (20, 200, 60)
    found[top + 5 : top + high - 5 : 6, left + 4 : left + wide - 4] = 255
    return found


@pytest.mark.parametrize("turn", range(8))
def test_a_blurred_picture_is_found_under_a_box_from_either_side(turn):
    back = {1: 3, 3: 1}.get(turn, turn)
    for picture in (BLURRED[i] for i in (0, 1, 2, 4, 5)):
        copy = np.ascontiguousarray(turn_pixels(boxed(picture, 20, 30, 120, 70)[None], turn)[0])  # a sixth of it is covered
        there, again = register(see(picture), see(copy)), register(see(copy), see(picture))
        assert (there.turn, again.turn) == (back, turn)
        for match in (there, again):
            assert 0.08 < match.covered < 0.4  # cells of the box that have the picture's own grey are not seen as covered
            assert np.abs(np.array([match.left, match.right]) - [0, 0, 1, 1]).max() < 0.03


@pytest.mark.parametrize(("area", "is_found"), [(0.6, True), (0.4, False)])
def test_the_way_back_alone_finds_large_common_areas_alone(monkeypatch, area, is_found):
    one, other = see(BLURRED[0]), see(BLURRED[1])
    back = Match(1, 0.9, 0.1, 0, (0.0, 0.0, 1.0, area), (0.2, 0.0, 1.0, 1.0))
    monkeypatch.setattr(registration, "_wholes", lambda *_: iter([None]))
    monkeypatch.setattr(registration, "_as_a_whole", lambda left, *_: back if left is other else None)
    found = register(one, other)
    assert found == (Match(3, 0.9, 0.1, 0, back.right, back.left) if is_found else None)


def test_boxes_on_what_shows_little_are_no_evidence():
    rng, down = np.random.default_rng(0), np.linspace(0, 1, 160)[:, None] * np.ones((1, 200))
    lights = [(rng.uniform(20, 60), rng.uniform(10, 50), *rng.uniform(-20, 20, 2)) for _ in range(6)]
    skies = [np.stack([90 + a * down + c, 140 + b * down + d, 200 - 10 * down], 2) + rng.normal(0, 2, (160, 200, 3)) for a, b, c, d in lights]
    for pictures in ([sky.clip(0, 255).astype(np.uint8) for sky in skies], BLURRED):
        bare = [see(p) for p in pictures]
        one, other = [see(boxed(p, 30, 30, 80, 50)) for p in pictures], [see(boxed(p, 100, 90, 60, 50)) for p in pictures]
        assert all(
            register(left[i], right[j]) is None for i, j in combinations(range(6), 2) for left, right in ((bare, one), (one, other), (other, bare))
        )


def test_a_frame_is_no_evidence_and_is_said():
    photo = BLURRED[1]
    match = register(see(photo), see(framed(photo, 40)))
    assert match.left == (0.0, 0.0, 1.0, 1.0)
    assert np.abs(box_of(match, "right", (280, 340)) - [40, 40, 300, 240]).max() <= 1
    assert match.covered < 0.02
    other = register(see(framed(photo, 20, 0)), see(framed(photo, 60)))
    assert np.abs(box_of(other, "left", (240, 300)) - [20, 20, 280, 220]).max() <= 1
    assert np.abs(box_of(other, "right", (320, 380)) - [60, 60, 320, 260]).max() <= 1


def test_a_collage_of_blurred_pictures_shows_each_of_them():
    darker = [BLURRED[0], BLURRED[1] // 3]
    sheet = see(np.concatenate([p[:, 30:230] for p in darker], axis=1))  # the middle square of each
    for number, photo in enumerate(darker):
        match = register(see(photo), sheet)
        assert np.abs(box_of(match, "left", photo.shape) - [30, 0, 230, 200]).max() < 20
        assert np.abs(box_of(match, "right", (200, 400)) - [200 * number, 0, 200 * number + 200, 200]).max() < 20
    assert all(register(see(photo), sheet) is None for photo in BLURRED[2:])


def test_parallel_lines_fit_in_many_places_and_prove_nothing():
    rng = np.random.default_rng(5)
    road = np.clip(np.repeat(np.cumsum(rng.normal(0, 14, (240, 1, 3)), axis=0) + 128, 700, axis=1), 0, 255).astype(np.uint8)
    shifted = register(see(road[:, :300]), see(road[30:210, 380:660]))
    assert shifted is None or shifted.score < 0.3
    assert register(see(road[:, :300]), see(np.ascontiguousarray(road[:, :300]))) is not None
    assert register(see(road[:, :300]), see(framed(road[:, :300]))) is not None


def test_a_shape_that_is_shared_does_not_outweigh_detail_that_differs():
    y, x = np.mgrid[0:220, 0:220] / 220.0
    disc = np.where((x - 0.2) ** 2 + (y - 0.2) ** 2 < 0.6, 150.0, 10.0)
    rooms = [disc + np.where(disc > 100, 12 * np.cos(17 * a * x + 3) * np.cos(17 * b * y), 0) for a, b in ((1, 2), (3, 1))]
    one, two = (see(np.repeat(np.clip(r, 0, 255).astype(np.uint8)[..., None], 3, 2)) for r in rooms)
    assert register(one, one) is not None
    assert register(one, two) is None or register(one, two).score < 0.4


def disc(radius, x, y, seed):
    """A bright disc of which the rim is seen, and nothing else."""
    rows, columns = np.mgrid[0:180, 0:220]
    light = np.clip((radius - np.hypot(columns - x, rows - y)) / 2 + 0.5, 0, 1)[..., None] * [200, 90, 60] + 5
    return np.clip(light + np.random.default_rng(seed).normal(0, 1, light.shape), 0, 255).astype(np.uint8)


def test_a_curve_can_be_laid_on_any_other_and_proves_nothing():
    one, other = see(disc(160, 40, 40, 0)), see(disc(140, 60, 140, 6))
    assert register(one, other) is None
    assert register(one, see(disc(160, 40, 40, 50)[10:170, 12:210])).score > 0.8  # one disc, one rim, other grain
    assert register(other, see(framed(disc(140, 60, 140, 6)))).score > 0.9


def captioned(picture, left, top):
    """With the same few words in a box."""
    found = Image.fromarray(picture)
    draw = ImageDraw.Draw(found)
    draw.rectangle((left, top, left + 129, top + 69), fill=(20, 60, 180))
    draw.multiline_text((left + 4, top + 4), "some words that\nare the same in\nboth of them", fill=(255, 255, 255), font_size=14)
    return np.asarray(found)


def test_one_box_on_two_smooth_pictures_is_no_evidence():
    seen = [[see(captioned(picture, *place)) for picture in BLURRED] for place in ((40, 50), (100, 100))]
    for i, j in combinations(range(6), 2):
        assert register(seen[0][i], seen[0][j]) is None
        assert register(seen[0][i], seen[1][j]) is None
    for picture, mine in zip(BLURRED, seen[0], strict=True):
        assert register(mine, see(captioned(picture, 40, 50)[::2, ::2])).score > 0.9
        assert register(mine, see(decode(jpeg((captioned(picture, 40, 50) * 0.6).astype(np.uint8), 60)))).score > 0.8


def test_sheets_that_share_a_smooth_picture_are_no_copies_but_each_shows_it():
    sheets = [see(np.concatenate([BLURRED[a][:, 30:230], BLURRED[b][:, 30:230] // 2], axis=1)) for a, b in ((0, 1), (2, 0), (3, 0))]
    assert all(register(one, other) is None for one, other in combinations(sheets, 2))
    assert all(register(see(BLURRED[0]), sheet) is not None for sheet in sheets)
    photos = [see(np.concatenate([PHOTOS["coffee"][:200, :200], PHOTOS[name][:200, :200]], axis=1)) for name in ("chelsea", "astronaut")]
    assert register(*photos).score > 0.8  # what has detail is evidence wherever it lies


@pytest.mark.parametrize("turn", range(8))
def test_a_thumbnail_worn_by_its_coder_is_found_by_all_that_it_shows(turn):
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        photo = PHOTOS[name]
        small = Image.fromarray(photo).resize((photo.shape[1] // 20, photo.shape[0] // 20), Image.Resampling.LANCZOS)
        worn = see(np.ascontiguousarray(turn_pixels(decode(jpeg(np.asarray(small), 15))[None], {1: 3, 3: 1}.get(turn, turn))[0]))
        match = register(see(photo), worn)
        assert match.turn == turn, name
        assert np.abs(np.array([match.left, match.right]) - [0, 0, 1, 1]).max() < 0.03
        assert match.score > 0.6
        assert [n for n, other in PHOTOS.items() if n != name and register(see(other), worn) is not None] == []


def test_two_small_pictures_are_no_thumbnails_of_each_other(monkeypatch):
    monkeypatch.setattr(registration, "likest_turn", lambda *_: (0, 1.0, 1e3))
    small = [see(np.ascontiguousarray(PHOTOS[name][:200:5, :200:5])) for name in ("astronaut", "chelsea")]
    assert register(*small) is None
    assert registration._thumbnail(see(PHOTOS["astronaut"][:200, :200]), small[1]).score == 1.0
    assert registration._thumbnail(see(PHOTOS["astronaut"][:200, :300]), small[1]) is None  # of another aspect


@pytest.mark.parametrize("side", [300, 420])
def test_rims_of_one_retina_are_not_each_other_whichever_way_they_are_turned(side):
    retina, last = np.ascontiguousarray(data.retina()[..., :3]), 1351 - side
    corners = [retina[y : y + side, x : x + side] for y in (60, last) for x in (60, last)]
    seen = [see(np.ascontiguousarray(corner)) for corner in corners]
    assert [(i, j) for (i, a), (j, b) in combinations(enumerate(seen), 2) if register(a, b) is not None] == []
    assert all(register(mine, see(decode(jpeg(corner[::-3, ::3], 60)))).score > 0.8 for mine, corner in zip(seen, corners, strict=True))
