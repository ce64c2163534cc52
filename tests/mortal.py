"""A keeper that dies at every publication but the first: what a decision is worth after kill -9, without a process."""

from collections.abc import Callable
from typing import Any

import numpy as np

from curate.pool import Pool, State, Verdicts


class Mortal:
    """Publishes in `kept`, once; dies instead of a second time."""

    def __init__(self, kept: dict[str, tuple[int, State]]) -> None:
        self.kept, self.left = kept, 1

    def load(self, name: str) -> tuple[int, State] | None:
        return self.kept.get(name)

    def save(self, name: str, round: int, state: State) -> None:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.kept[name] = round, tuple(np.array(a) for a in state)

    def due(self) -> bool:
        return True


def through_deaths(decision: Callable[..., Verdicts], pool: Callable[[], Pool], **given: Any) -> tuple[Verdicts, int]:
    """The verdicts of `decision` on fresh pools that go on from what was published, and how often it died on the way."""
    kept: dict[str, tuple[int, State]] = {}
    for deaths in range(1000):
        mortal = pool()
        mortal._keeper = Mortal(kept)
        try:
            return decision(mortal, **given), deaths
        except KeyboardInterrupt:
            continue
    raise AssertionError("it never ends")
