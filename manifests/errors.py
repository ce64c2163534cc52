"""Every refusal a user can cause, in one grammar: *where: what was given; what is allowed. Cure. [slug]*.

Raise with ``raise Refusal("bad-value", where, given, allowed, cure)``. `assert` is for our own mistakes only.
Each slug has an exit code here and a paragraph in ``docs/messages.md`` (a test compares the two lists).
"""

import difflib
from collections.abc import Iterable, Mapping

DONE, BUG, WRONG_USE, BAD_SAMPLES, BROKEN_RECORD, DOES_NOT_FIT, LOCKED, STOPPED = 0, 1, 2, 3, 4, 5, 6, 130

SLUGS = {  # slug: exit code, in alphabetical order
    "bad-command": WRONG_USE,
    "bad-image": BAD_SAMPLES,
    "bad-plan": WRONG_USE,
    "bad-pool": WRONG_USE,
    "bad-recipe": WRONG_USE,
    "bad-samples": BAD_SAMPLES,
    "bad-scores": WRONG_USE,
    "bad-sql": WRONG_USE,
    "bad-tar": BROKEN_RECORD,
    "bad-value": WRONG_USE,
    "broken-record": BROKEN_RECORD,
    "disk-full": DOES_NOT_FIT,
    "diverged": WRONG_USE,
    "does-not-fit": DOES_NOT_FIT,
    "download-failed": WRONG_USE,
    "empty-pool": WRONG_USE,
    "law-broken": BROKEN_RECORD,
    "missing-label": WRONG_USE,
    "missing-package": WRONG_USE,
    "no-such-file": WRONG_USE,
    "no-such-sample": WRONG_USE,
    "not-a-run": WRONG_USE,
    "not-replayable": WRONG_USE,
    "not-writable": WRONG_USE,
    "nothing-kept": WRONG_USE,
    "run-locked": LOCKED,
    "shard-differs": BROKEN_RECORD,
    "truth-column": WRONG_USE,
    "unknown-column": WRONG_USE,
    "unknown-parameter": WRONG_USE,
    "unknown-stage": WRONG_USE,
}


def near(name: object, known: Iterable[str], short: Mapping[str, str] | None = None) -> str:
    """The cure of a name that is nearly one of `known`: "Did you mean a or b"; empty where none is near.

    short    further, shorter names of the known ones: tried where none of `known` is near
    """
    close = difflib.get_close_matches(str(name), list(known), n=2, cutoff=0.7)
    if not close and short:
        words = difflib.get_close_matches(str(name).rpartition(".")[2], list(short.values()), n=2, cutoff=0.7)
        close = [full for full, word in short.items() if word in words]
    return f"Did you mean {' or '.join(close)}" if close else ""


class Refusal(Exception):
    """A refusal with a slug and an exit code; ``str()`` is the one line that the user reads."""

    def __init__(self, slug: str, where: str, given: str, allowed: str = "", cure: str = "") -> None:
        assert slug in SLUGS, f"slug {slug!r} is not in manifests/errors.py"
        self.slug, self.where, self.given, self.allowed, self.cure = slug, where, given, allowed, cure
        self.exit_code = SLUGS[slug]
        super().__init__(slug, where, given, allowed, cure)

    def __str__(self) -> str:
        line = f"{self.where}: {self.given}"
        if self.allowed:
            line += f"; {self.allowed}"
        if self.cure:
            line += f". {self.cure}"
        return f"{line} [{self.slug}]"
