"""The plan: what is compared, on what, with which margin, and when it is looked at; fixed before the first run.

    format: 1
    run: runs/food                    # whose ledger says what the arms hold; `--run` says it too
    arms:
      full:                           # every row that can be read
      kept:                           # what the run kept; `{is: kept, run: OTHER}` under another name adds a second selection
      random: {draws_per_seed: 1}     # as many rows as kept, a fresh draw for every run
      random_clean:                   # the same, from the rows that reach the last `select.*` (`clean_after: STAGE` says otherwise)
      random_shares:                  # the same, with the kept rows' class shares
      untrained: {runs: 10}
      raw_pixels:
    objectives: {cross_entropy: {projector: true}, look: {}}
    tasks:
      - {name: pets, train: pools/pets-train, test: pools/pets-test, probe: linear}     # seen_by_selector: true takes it out of the suite
    budget: {samples_seen: 1000000}   # or {epochs: 20}: fewer steps for fewer rows
    training: {backbone: "timm:resnet18", resolution: 64, batch: 256}                   # what else `pretrain train` takes, the same for all arms
    margin: {retain: 0.98}            # of the gain over untrained; or {absolute: 0.01}, one point
    looks: [3, 5, 10]                 # numbers of seeds at which the scores may be judged: 2.5 % error for the first, 2.5 % for the others together;
                                      # at another number, the first look too, 1.25 % or less, of what is not reserved for these
    seeds: 5
    jobs: 2

Paths are those of the working directory. `pretrain judge` needs arms, tasks (names do), margin and looks only.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests.digest import digest
from manifests.errors import Refusal
from manifests.processes import cores
from manifests.strict_yaml import read_yaml
from pretrain.evidence.verdict import MIN_RUNS

FIELDS = ("format", "run", "arms", "objectives", "tasks", "budget", "training", "margin", "looks", "seeds", "seed", "weights", "jobs", "record")
TRAINED = ("full", "kept", "random", "random_clean", "random_shares")
DRAWN = ("random", "random_clean", "random_shares")
ARM_FIELDS = {
    "full": {"run"},
    "kept": {"run", "selector"},
    "random": {"run", "like", "draws_per_seed"},
    "random_clean": {"run", "like", "draws_per_seed", "clean_after"},
    "random_shares": {"run", "like", "draws_per_seed"},
    "untrained": {"runs"},
    "raw_pixels": {"side"},
}
PLANNED = {  # parameters of `pretrain train` that the comparison sets itself, and what says them
    "data": "the run and its arms say what is trained on", "uids": "the arms say which rows are trained on", "out": "`--out` names the evidence folder",
    "seed": "the plan's `seed` is the first, each run has its own", "samples_seen": "`budget` says it", "smallest_arm": "it follows from the arms",
    "objective": "`objectives` says it", "device": "`--device` says it",
}  # fmt: skip
FORBIDDEN_NAME = "letters, digits, `_`, `-` and `.`"


@dataclass(frozen=True)
class PlannedArm:
    """One arm. `is_a`: full, kept, random, random_clean, random_shares, untrained or raw_pixels.

    run             the run whose ledger says which rows it holds; default the plan's
    like            drawn arms: the kept arm whose size (and shares) they have; default the only kept arm
    draws_per_seed  drawn arms: fresh draws, one run each, for every seed of the plan; default 2, where kept is at most 20 % of the pool 3
    clean_after     random_clean: draw from the rows that this stage left; default the last stage before the run's last `select.*`
    runs            untrained: how many random initialisations (no training, so they cost little)
    side            raw_pixels: the pictures' side in pixels; default the plan's resolution
    selector        kept: each run is a new selection (by hand, in a score table), so that the claim is about the selector
    """

    name: str
    is_a: str
    run: str | None = None
    like: str | None = None
    draws_per_seed: int | None = None
    clean_after: str | None = None
    runs: int = 10
    side: int | None = None
    selector: bool = False

    @property
    def drawn(self) -> bool:
        return self.is_a in DRAWN

    @property
    def fixed(self) -> bool:
        """Nothing in it is drawn: its run variance is 0."""
        return self.is_a == "raw_pixels"


@dataclass(frozen=True)
class Margin:
    """`retain: 0.98` = keep at least 98 % of the gain over untrained on the suite (`retain_task`, 0.95, on one task); `absolute: 0.01` = one point."""

    kind: str
    suite: float
    task: float


@dataclass(frozen=True)
class Plan:
    """A checked plan; `digest` names the comparison (seeds and jobs are not part of it, the sets of rows are: see `named`)."""

    where: str
    run: str | None
    arms: tuple[PlannedArm, ...]
    objectives: dict[str, dict[str, Any]]
    tasks: tuple[dict[str, Any], ...]
    budget: dict[str, float]
    training: dict[str, Any]
    margin: Margin | None
    looks: tuple[int, ...]
    seeds: int
    seed: int
    weights: dict[str, float]
    jobs: int
    record: dict[str, Any]

    def of_kind(self, *kinds: str) -> list[PlannedArm]:
        return [arm for arm in self.arms if arm.is_a in kinds]

    def arm(self, name: str) -> PlannedArm:
        return next(arm for arm in self.arms if arm.name == name)

    def design(self) -> dict[str, Any]:
        """Everything that the question is made of, but margin and looks."""
        arms = {a.name: {k: v for k, v in vars(a).items() if k not in ("name", "run") and v is not None} for a in self.arms}
        named = ("arms", "objectives", "tasks", "budget", "training", "seed", "weights", "sets")
        sets = self.record.get("sets", {})
        values = (arms, self.objectives, list(self.tasks), self.budget, self.training, self.seed, self.weights, sets)
        return dict(zip(named, values, strict=True))

    @property
    def digest(self) -> str:
        margin = None if self.margin is None else vars(self.margin)
        return digest("comparison", self.design(), margin, list(self.looks))

    def plain(self) -> dict[str, Any]:
        """As YAML writes it, every default written out; `read_plan` of it gives the same digest."""
        arms = {a.name: {"is": a.is_a, **{f: getattr(a, f) for f in sorted(ARM_FIELDS[a.is_a]) if getattr(a, f) is not None}} for a in self.arms}
        margin = None if self.margin is None else {self.margin.kind: self.margin.suite, f"{self.margin.kind}_task": self.margin.task}
        body = {"format": 1, "run": self.run, "arms": arms, "objectives": self.objectives, "tasks": list(self.tasks), "budget": self.budget}
        rest = {"training": self.training, "margin": margin, "looks": list(self.looks), "seeds": self.seeds, "seed": self.seed}
        return {**body, **rest, "weights": self.weights, "jobs": self.jobs, "record": self.record}


def read_plan(path: Path) -> Plan:
    """Read and check a plan; every fault is a `Refusal` [bad-plan] (or [no-such-file]) before any work."""
    if not path.is_file():
        raise Refusal("no-such-file", str(path), "is not there", "a YAML file with arms, tasks, margin and looks")
    body = read_yaml(path.read_bytes(), str(path), "bad-plan")
    return check_plan(body, str(path))


def check_plan(body: Any, where: str) -> Plan:
    """The plan that `body` (parsed YAML) describes; see `PlannedArm`, `Margin` and docs for its fields."""
    if not isinstance(body, dict) or body.get("format") != 1:
        raise Refusal("bad-plan", where, "is not a plan of format 1", "it starts with `format: 1`")
    for name in body:
        if name not in FIELDS:
            tuned = " Training is the same for every arm: tuning one of them alone is refused" if name in ("tune", "search") else ""
            raise Refusal("bad-plan", where, f"has the unknown field {name!r}", f"its fields: {', '.join(FIELDS)}.{tuned}")
    arms = _arms(body.get("arms"), where)
    tasks = _tasks(body.get("tasks"), where)
    margin = _margin(body.get("margin"), arms, where)
    seeds = _whole(body.get("seeds", 5), f"{where}: seeds", 1)
    looks = _looks(body.get("looks", [3, 5, 10]), where)
    weights = _weights(body.get("weights"), [task["name"] for task in tasks], where)
    return Plan(
        where, _text(body.get("run")), arms, _objectives(body.get("objectives"), where), tasks, _budget(body.get("budget"), where),
        _training(body.get("training"), where), margin, looks, seeds, _whole(body.get("seed", 0), f"{where}: seed", 0), weights,
        _whole(body.get("jobs") or cores(), f"{where}: jobs", 1), _mapping(body.get("record"), f"{where}: record", "what `compare` has noted"),
    )  # fmt: skip


def _mapping(given: Any, where: str, allowed: str) -> dict[str, Any]:
    """`given` as a mapping; an empty one where it is null."""
    if given is not None and not isinstance(given, dict):
        raise Refusal("bad-plan", where, f"{given!r}", allowed)
    return {str(name): value for name, value in (given or {}).items()}


def _training(given: Any, where: str) -> dict[str, Any]:
    found = _mapping(given, f"{where}: training", "parameters of `pretrain train`, the same for every arm")
    for name in found:
        if name in PLANNED:
            raise Refusal("bad-plan", f"{where}: training", f"has {name}", "what else `pretrain train` takes, the same for every arm", PLANNED[name])
    return found


def _objectives(given: Any, where: str) -> dict[str, dict[str, Any]]:
    where, allowed = f"{where}: objectives", "names with their parameters, `{look: {}}`, or a list of names"
    if isinstance(given, list):
        given = {str(name): {} for name in given}
    return {name: _mapping(parameters, f"{where}: {name}", "its parameters") for name, parameters in _mapping(given, where, allowed).items()}


def _weights(given: Any, names: list[str], where: str) -> dict[str, float]:
    where, allowed = f"{where}: weights", f"one number above 0 for each of {', '.join(names)}"
    found = _mapping(given, where, allowed)
    if found and (sorted(found) != sorted(names) or not all(map(_above_zero, found.values()))):
        raise Refusal("bad-plan", where, f"are {', '.join(f'{name}: {value!r}' for name, value in found.items())}", allowed)
    return {name: float(value) for name, value in found.items()}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _whole(value: Any, where: str, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise Refusal("bad-plan", where, f"{value!r}", f"a whole number from {least}")
    return value


def _arms(given: Any, where: str) -> tuple[PlannedArm, ...]:
    if isinstance(given, list):
        given = dict.fromkeys(map(str, given))
    if not isinstance(given, dict) or len(given) < 2:
        raise Refusal("bad-plan", f"{where}: arms", f"{given!r}", "two arms or more, for instance full, kept, random, untrained")
    arms = tuple(
        _arm(str(name), _mapping(options, f"{where}: arms: {name}", "its options"), f"{where}: arms: {name}") for name, options in given.items()
    )
    kept = [arm.name for arm in arms if arm.is_a == "kept"]
    checked = []
    for arm in arms:
        if arm.drawn:
            like = arm.like or (kept[0] if len(kept) == 1 else None)
            if like not in kept:
                raise Refusal(
                    "bad-plan", f"{where}: arms: {arm.name}", f"like: {like}", f"the kept arm whose size it has: {', '.join(kept) or 'none'}"
                )
            arm = PlannedArm(**{**vars(arm), "like": like})
        checked.append(arm)
    for kind in ("full", "untrained", "raw_pixels"):
        if sum(arm.is_a == kind for arm in arms) > 1:
            raise Refusal("bad-plan", f"{where}: arms", f"two arms are {kind}", "one is the reference")
    if not any(arm.is_a in TRAINED for arm in arms):
        raise Refusal("bad-plan", f"{where}: arms", "none is trained", f"one of {', '.join(TRAINED)} at least")
    return tuple(checked)


def _arm(name: str, options: dict[str, Any], where: str) -> PlannedArm:
    kind = options.get("is", name)
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise Refusal("bad-plan", where, f"{name!r} is no name", FORBIDDEN_NAME)
    if not isinstance(kind, str) or kind not in ARM_FIELDS:
        raise Refusal("bad-plan", where, f"is {kind!r}", f"`is:` one of {', '.join(ARM_FIELDS)}")
    for option in options:
        if option != "is" and option not in ARM_FIELDS[kind]:
            allowed = f"a {kind} arm takes {', '.join(sorted(ARM_FIELDS[kind]))}; training is the same for all arms"
            raise Refusal("bad-plan", where, f"has no option {option!r}", allowed)
    for option in ("draws_per_seed", "runs", "side"):
        if options.get(option) is not None:
            _whole(options[option], f"{where}: {option}", 1)
    return PlannedArm(name, kind, **{k: v for k, v in options.items() if k != "is"})


def _tasks(given: Any, where: str) -> tuple[dict[str, Any], ...]:
    if not isinstance(given, list) or not given:
        raise Refusal("bad-plan", f"{where}: tasks", f"{given!r}", "a list of {name, train, test, probe}")
    tasks = [{"name": task} if isinstance(task, str) else task for task in given]
    for task in tasks:
        known = {"name", "train", "test", "probe", "seen_by_selector"}
        if not isinstance(task, dict) or not isinstance(task.get("name"), str) or set(task) - known:
            raise Refusal("bad-plan", f"{where}: tasks", f"{task!r}", f"a name, and of {', '.join(sorted(known - {'name'}))} what applies")
    if len({t["name"] for t in tasks}) < len(tasks):
        raise Refusal("bad-plan", f"{where}: tasks", "two tasks carry one name", "each task has its own name")
    if all(t.get("seen_by_selector") for t in tasks):
        raise Refusal(
            "bad-plan", f"{where}: tasks", "the selector saw all of them", "one task at least that it did not see: only those prove anything"
        )
    return tuple(tasks)


def _margin(given: Any, arms: tuple[PlannedArm, ...], where: str) -> Margin | None:
    where = f"{where}: margin"
    kinds = {arm.is_a for arm in arms}
    if given is None:
        if "full" in kinds and len([a for a in arms if a.is_a in TRAINED]) > 1:
            raise Refusal("bad-plan", where, "is absent", "`{retain: 0.98}` or `{absolute: 0.01}`, fixed before the first run")
        return None
    if not isinstance(given, dict) or not given or set(given) - {"retain", "retain_task", "absolute", "absolute_task"}:
        raise Refusal("bad-plan", where, f"{given!r}", "`{retain: 0.98}` or `{absolute: 0.01}`")
    kind = "retain" if "retain" in given else "absolute"
    if kind not in given or set(given) - {kind, f"{kind}_task"}:
        raise Refusal("bad-plan", where, f"{given!r}", "one kind of margin")
    suite: Any = given[kind]
    task: Any = given.get(f"{kind}_task", 0.95 if kind == "retain" else suite)
    allowed: Callable[[float], bool] = (lambda v: 0.5 < v < 1) if kind == "retain" else (lambda v: 0 < v < 0.5)
    for value in (suite, task):
        if not isinstance(value, float) or not allowed(value):
            words = "a fraction of the gain above 0.5 and below 1" if kind == "retain" else "a fraction above 0 and below 0.5; 0.01 is one point"
            raise Refusal("bad-plan", where, f"{value!r}", words)
    if kind == "retain" and "untrained" not in kinds:
        raise Refusal("bad-plan", where, "retain needs an untrained arm", "the gain is that over an untrained network", "Add `untrained:` to arms")
    few = [arm.name for arm in arms if kind == "retain" and arm.is_a == "untrained" and arm.runs is not None and arm.runs < MIN_RUNS]
    if few:
        raise Refusal("bad-plan", where, f"retain needs {MIN_RUNS} runs of {few[0]} or more", "", "Leave `runs` away for 10: they cost no training")
    return Margin(kind, suite, task)


def _looks(given: Any, where: str) -> tuple[int, ...]:
    if not isinstance(given, list) or not given or any(not isinstance(s, int) or s < MIN_RUNS for s in given) or sorted(set(given)) != given:
        raise Refusal("bad-plan", f"{where}: looks", f"{given!r}", f"rising numbers of seeds from {MIN_RUNS}, for instance [3, 5, 10]")
    return tuple(given)


def _budget(given: Any, where: str) -> dict[str, float]:
    if given in (None, {}):
        return {}
    if not isinstance(given, dict) or len(given) != 1 or set(given) - {"samples_seen", "epochs"} or not all(_above_zero(v) for v in given.values()):
        raise Refusal("bad-plan", f"{where}: budget", f"{given!r}", "`{samples_seen: 60000}` (equal compute) or `{epochs: 20}` (cheaper training)")
    return dict(given)


def _above_zero(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
