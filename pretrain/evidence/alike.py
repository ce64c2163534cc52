"""Two runs that agree on every sample: one training counted twice, or a task that is nearly solved."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from manifests.errors import Refusal
from pretrain.evidence.plan import TRAINED, Plan
from pretrain.evidence.scores import ArmScores

SURELY = 20  # samples at which two trainings differ on average: that they then differ nowhere has a chance of about exp(-20)


def alike(of_arms: Mapping[str, ArmScores], plan: Plan, objective: str) -> dict[str, str]:
    """Arm -> a note, where two of its runs agree on every sample and that may be chance.

    Where it cannot be chance it is a `Refusal` [bad-scores]: runs that are copies of one training would hide the spread between trainings. How often two
    runs differ is taken from the scores themselves: the fewest samples at which two others of the arm do. Where no two of the arm differ, the smaller
    of two stand-ins: the same of the other trained arms, and half of the arm's samples off its commonest value (two runs share about half their errors).
    """
    differing = {arm.name: _differing(of_arms[arm.name]) for arm in plan.arms if not arm.fixed and arm.name in of_arms}
    notes: dict[str, str] = {}
    for name, count in differing.items():
        same = np.argwhere(np.triu(count == 0, 1))
        if not len(same):
            continue
        elsewhere = [differing[arm.name] for arm in plan.of_kind(*TRAINED) if arm.name in differing and arm.name != name]
        usual = _fewest(count) or min([_half_unusual(of_arms[name]), *(fewest for other in elsewhere if (fewest := _fewest(other)))])
        (_, one), (_, other_run) = (of_arms[name].runs[k] for k in same[0])
        given = f"runs {one} and {other_run} agree on every sample"
        if usual >= SURELY:
            expected = f"each run is its own training: here two would differ on {usual:,.0f} samples or more"
            raise Refusal("bad-scores", f"objective {objective or 'null'}, arm {name}", given, expected, "Is one a copy?")
        notes[name] = f"{given} (arm {name}): where so few samples are open, two trainings may"
    return notes


def _differing(of_arm: ArmScores) -> NDArray[np.int64]:
    """(runs, runs): at how many samples of all tasks two runs have not the same score."""
    whole = np.concatenate(list(of_arm.values.values()), axis=-1)
    return np.array([(whole != run).sum(-1) for run in whole])


def _fewest(count: NDArray[np.int64]) -> int:
    """The smallest number that is not 0; 0 where no two differ."""
    return int(count[count > 0].min(initial=np.iinfo(np.int64).max)) if count.any() else 0


def _half_unusual(of_arm: ArmScores) -> float:
    """Half of the samples of one run, task by task, whose score is not the task's commonest."""
    return sum(values.shape[-1] - np.unique(values[0], return_counts=True)[1].max() for values in of_arm.values.values()) / 2
