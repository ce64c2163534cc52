"""The words say what was done: done to the original, and undone by the turn, they give the original again."""

import numpy as np
import pytest

from manifests.changes import TURNED, change
from manifests.likeness import turn_pixels

DONE = {
    "": lambda p: p,
    "turned 90° to the right": lambda p: np.rot90(p, -1),
    "turned 90° to the left": np.rot90,
    "turned 180°": lambda p: np.rot90(p, 2),
    "mirrored": lambda p: p[:, ::-1],
    "mirrored top to bottom": lambda p: p[::-1],
    "mirrored and turned 90° to the right": lambda p: np.rot90(p[:, ::-1], -1),
    "mirrored and turned 90° to the left": lambda p: np.rot90(p[:, ::-1]),
}


@pytest.mark.parametrize("turn", range(8))
def test_each_turn_undoes_what_its_words_say(turn):
    original = np.arange(27).reshape(3, 3, 3)
    copy = DONE[TURNED[turn]](original)
    np.testing.assert_array_equal(turn_pixels(copy[None], turn)[0], original)


def test_what_hardly_changed_is_not_told():
    assert change(0, 0.99, 0.99, 0.01) == "the whole picture"
    assert change(4, 0.8, 0.5, 0.24) == "mirrored, cropped to 80 %, set in a frame that it fills to 50 %, 24 % covered"
