"""`pretrain compare PLAN`: train every arm, seed by seed, test it, and judge."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from manifests.digest import digest
from manifests.errors import Refusal
from manifests.progress import Progress, record_event
from manifests.publish import locked, publish_bytes, publish_table, published_digest
from pretrain.configuration import starting_weights
from pretrain.evidence import power
from pretrain.evidence.arms import Ledger, Uids, clean_rows, drawn_rows, full_rows, kept_rows, read_ledger, rows_digest, write_draw
from pretrain.evidence.judge import evaluate, wait
from pretrain.evidence.looks import read_looks
from pretrain.evidence.plan import TRAINED, Plan, PlannedArm, read_plan
from pretrain.evidence.questions import Facts
from pretrain.evidence.runs import Device, Run, Work, placed, prepare_worker, publish_scores, runs_of, spent_on, work
from pretrain.evidence.scores import SCHEMA, fold
from pretrain.evidence.verdict import MIN_RUNS
from pretrain.tables import OBJECTIVES, TASKS

Runner = Callable[[str, int, str], pa.Table]  # (arm, seed, objective, "" for arms without one) -> columns task, sample_uid, value, cluster
MANY_DRAWS = 0.2  # where kept is at most this share of full, draws are cheap and three a seed the best buy


def compare(
    plan: Path,
    *,
    run: Path | None = None,
    out: Path | None = None,
    seeds: int | None = None,
    jobs: int | None = None,
    device: Device = "auto",
    runner: Runner | None = None,
) -> Path:
    """Train and test every arm of PLAN, one seed of each after the other, and write the verdict; returns the evidence folder.

    The verb prints `pretrain.evidence.table.table(folder)`. Stopped at any moment, the same call goes on; finished, it says so at once.

    plan    YAML: arms, objectives, tasks, budget, training (keys of `pretrain train` that are the same for all), margin, looks, seeds, jobs
    run     the run whose kept rows are tested; default the plan's `run`
    out     the evidence folder; default RUN/evidence/<plan digest>
    seeds   seeds of each arm; default the plan's. More of them later continue the same comparison, at the next look's error
    jobs    one-thread processes side by side; default the plan's, else one a core; of these on CUDA as many as the card's free memory holds, at 4 GiB each
    device  where runs train and are tested; auto goes on with a seed that was begun on another device there, and refuses where that is not
            to be had; a device that is named is taken, and the verdicts tell where the two sides of a difference were not made on one
    runner  replaces training and testing (for trainers of one's own): (arm, seed, objective) -> table of task, sample_uid, value
    Writes  plan.yaml, draws/, runs/<objective>/<arm>/<run>/, scores.parquet after each seed, verdicts.parquet and intervals.svg at each look, looks.jsonl
    Cost    seeds x (full + kept + draws) trainings an objective; the verdict itself takes seconds
    Errors  [bad-plan], [no-such-file], [not-a-run], [run-locked], those of `train` and `transfer`; [does-not-fit] where a worker was killed
    """
    checked = read_plan(plan)
    comparison = _open(checked, run, out, seeds)
    if runner is None:
        _check_training(comparison, device)
    with locked(comparison.folder):
        _write_plan(comparison)
        todo = [r for r in comparison.runs if not comparison.done(r)]
        places = placed(todo, comparison.devices(set(comparison.runs) - set(todo)), device) if todo and runner is None else {}
        with Progress("compare", len(comparison.runs), "runs", events=comparison.folder / "events.jsonl") as progress:
            progress.done = len(comparison.runs) - len(todo)
            with _executor(jobs, checked.jobs, places, todo, runner) as submit:
                pending = {r: submit(comparison, r, places.get(r, device)) for r in todo}
                moved = False
                for round_ in range(comparison.seeds):
                    fresh = [r for r in comparison.runs if r.round == round_ and r in pending]
                    for r in fresh:
                        pending[r]()
                        record_event(comparison.folder / "events.jsonl", "run", folder=r.folder)
                        progress.advance()
                    moved = moved or bool(fresh)
                    _judge_round(comparison, round_, moved)
    return comparison.folder


@dataclass(frozen=True)
class Comparison:
    """A plan with its sets of rows: everything that the runs need."""

    plan: Plan
    folder: Path
    seeds: int
    ledgers: dict[str, Ledger]  # arm -> the ledger it is read from
    sets: dict[str, Uids]  # full and kept arms; a drawn arm has those of each draw in draws/
    runs: tuple[Run, ...]
    contents: dict[str, str]  # full and kept arms: digest of their rows; drawn arms: of the rows that they are drawn from

    def size(self, arm: PlannedArm) -> int:
        return len(self.sets[arm.like or arm.name])

    def smallest(self) -> int:
        return min(self.size(arm) for arm in self.plan.of_kind(*TRAINED))

    def samples_seen(self, arm: PlannedArm) -> int:
        budget = self.plan.budget
        return int(budget["samples_seen"]) if "samples_seen" in budget else round(budget["epochs"] * self.size(arm))

    def draw(self, run: Run) -> Path:
        """The file that lists the rows of a drawn arm's run; written where it is missing."""
        arm = self.plan.arm(run.arm)
        assert run.draw is not None and arm.like is not None
        path = self.folder / "draws" / f"{arm.name}-{run.draw}.parquet"
        return path if path.is_file() else write_draw(path, drawn_rows(arm, self.ledgers[arm.name], self.sets[arm.like], run.draw))

    def identity(self, run: Run) -> str:
        """What a run's scores are made of: rows with their labels, training, seed, tasks with their pools; margin and looks are not in it."""
        arm = self.plan.arm(run.arm)
        rows: Any = None
        trained: Any = None
        if run.objective is not None:
            ledger, content = self.ledgers[arm.name], self.contents[arm.name]
            like = self.contents[arm.like or arm.name]
            rows = [like, content, ledger.pool, arm.is_a, run.draw] if arm.drawn else [content, ledger.weights if arm.is_a == "kept" else None]
            version = self.plan.record["sets"].get(f"version of {run.objective}")
            trained = [run.objective, version, self.plan.objectives[run.objective], self.samples_seen(arm), self.smallest()]
        tested = {name: value for name, value in self.plan.record["sets"].items() if name.startswith(("pool at ", "version of probe "))}
        start = starting_weights(self.plan.training.get("backbone"))
        return digest("run", arm.is_a, rows, trained, self.plan.training, run.seed, list(self.plan.tasks), tested, arm.side, *start)

    def done(self, run: Run) -> bool:
        """Whether the run's scores are there; those of the same run in a sister comparison (another margin) are linked."""
        path = self.folder / run.folder / "scores.parquet"
        wanted = self.identity(run)
        if published_digest(path) == wanted:
            return True
        for sister in sorted(self.folder.parent.glob(f"*/{run.folder}/scores.parquet")):
            if sister != path and published_digest(sister) == wanted:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)
                os.link(sister, path)
                record_event(self.folder / "events.jsonl", "linked", folder=run.folder)
                return True
        return False

    def devices(self, runs: Iterable[Run]) -> dict[Run, str]:
        """The device of each run that stands; "" where nothing was trained, or nobody wrote it down."""
        return {r: spent_on(self.folder / r.folder / "scores.parquet").get("device", "") for r in runs}

    def config(self, run: Run, device: Device) -> dict[str, Any]:
        """The configuration of `pretrain train` for a run that trains; the same for every arm but for its rows."""
        arm = self.plan.arm(run.arm)
        given = self.plan.objectives[str(run.objective)]
        config = {
            **self.plan.training, "data": [str(self.ledgers[arm.name].path)], "objective": {**given, "name": given.get("name", run.objective)},
            "samples_seen": self.samples_seen(arm), "smallest_arm": self.smallest(), "seed": run.seed, "out": str(self.folder / run.folder),
            "device": device, "threads": 1,
        }  # fmt: skip
        if arm.drawn:
            config["uids"] = str(self.draw(run))
        elif arm.is_a == "full":
            config["uids"] = str(write_draw(self.folder / "draws" / f"{arm.name}.parquet", self.sets[arm.name]))
        return config

    def tasks(self) -> list[dict[str, Any]]:
        return [{k: v for k, v in task.items() if k != "seen_by_selector"} for task in self.plan.tasks]

    def work(self, run: Run, device: Device) -> Work:
        """The run as its worker gets it."""
        arm, training = self.plan.arm(run.arm), self.plan.training
        checkpoint, config = "", None
        if run.objective is not None:
            config = self.config(run, device)
        elif arm.is_a == "untrained":
            checkpoint = f"untrained:{training['backbone']}@{training['resolution']}?seed={run.seed}"
        else:
            checkpoint = f"pixels:{arm.side or training['resolution']}"
        return Work(self.folder / run.folder, config, checkpoint, self.tasks(), device, run.seed, self.identity(run))


def _open(plan: Plan, run: Path | None, out: Path | None, seeds: int | None) -> Comparison:
    """Check what training needs of the plan, read the ledgers, fix the sets of rows."""
    default = str(run) if run else plan.run
    for name, there in (("run", default), ("objectives", plan.objectives), ("budget", plan.budget)):
        if not there:
            raise Refusal("bad-plan", f"{plan.where}: {name}", "is absent", "compare needs it; only judge does without")
    for name in ("backbone", "resolution"):
        if name not in plan.training:
            raise Refusal(
                "bad-plan", f"{plan.where}: training", f"has no {name}", "backbone, resolution and what else `pretrain train` takes for every arm"
            )
    if plan.of_kind(*TRAINED) and any(arm.selector for arm in plan.arms):
        raise Refusal("bad-plan", f"{plan.where}: arms", "selector: true", "compare tests one selection; a selector is judged from a score table")
    opened: dict[str, Ledger] = {}
    ledgers: dict[str, Ledger] = {}
    sets: dict[str, Uids] = {}
    for arm in plan.of_kind(*TRAINED):
        path = str(arm.run or (plan.arm(arm.like).run if arm.like else None) or default)
        ledgers[arm.name] = opened.setdefault(path, opened.get(path) or read_ledger(Path(path)))
        if not arm.drawn:
            sets[arm.name] = kept_rows(ledgers[arm.name]) if arm.is_a == "kept" else full_rows(ledgers[arm.name])
    for arm in plan.arms:
        if arm.drawn and arm.like:
            drawn_rows(arm, ledgers[arm.name], sets[arm.like], 0)  # refused now if it cannot be drawn
    contents = {a.name: _content(a, ledgers[a.name], sets) for a in plan.of_kind(*TRAINED)}
    fixed = {name: digest(content, ledgers[name].weights if name in sets else None) for name, content in contents.items()}
    record = {"sets": fixed | {f"pool of {name}": ledger.pool for name, ledger in ledgers.items()} | _tested(plan)}
    plan = replace(plan, run=default, record=record)
    per_seed = {arm.name: arm.draws_per_seed or _draws(sets[arm.like], ledgers[arm.name]) for arm in plan.arms if arm.drawn and arm.like}
    folder = out or Path(str(default)) / "evidence" / plan.digest[:16]
    count = max([seeds or plan.seeds, *(row["runs"] for row in read_looks(folder))])  # a look that was taken is not taken back
    return Comparison(plan, folder, count, ledgers, sets, tuple(runs_of(plan, count, per_seed)), contents)


def _content(arm: PlannedArm, ledger: Ledger, sets: dict[str, Uids]) -> str:
    """Digest of an arm's rows, or of those that its draws are taken from."""
    drawn_from = clean_rows(ledger, arm.clean_after) if arm.is_a == "random_clean" else full_rows(ledger)
    return rows_digest(ledger, drawn_from if arm.drawn else sets[arm.name])


def _tested(plan: Plan) -> dict[str, str]:
    """What the scores hang on besides the arms: content of each task's pools, versions of objectives and probes. A pool that is not there has none."""
    from pretrain.samples import open_samples

    pools = dict.fromkeys(str(task[side]) for task in plan.tasks for side in ("train", "test") if task.get(side))
    found = {f"pool at {pool}": open_samples([pool]).digest() for pool in pools if "://" in pool or Path(pool).exists()}
    for objective, given in plan.objectives.items():
        row = OBJECTIVES.get(str(given.get("name", objective)))
        found |= {f"version of {objective}": str(row.version)} if row else {}
    probes = dict.fromkeys(str(task.get("probe")) for task in plan.tasks)
    return found | {f"version of probe {probe}": str(TASKS[probe].version) for probe in probes if probe in TASKS}


def _check_training(comparison: Comparison, device: Device) -> None:
    """What `train` and `transfer` would refuse, before the first run."""
    from manifests.signature import check
    from pretrain.train import training
    from pretrain.transfer.transfer import check_task

    for objective in comparison.plan.objectives:
        first = next(r for r in comparison.runs if r.objective == objective and not comparison.plan.arm(r.arm).drawn)
        config = comparison.config(first, device)
        check(training, config, f"{comparison.plan.where}: training")
        _check_objective(config["objective"], f"{comparison.plan.where}: objectives: {objective}")
    for task in comparison.tasks():
        check_task(task)


def _check_objective(given: dict[str, Any], where: str) -> None:
    if not isinstance(given["name"], str) or given["name"] not in OBJECTIVES:
        raise Refusal("bad-plan", where, f"{given['name']!r} is no objective", f"one of {', '.join(OBJECTIVES)}")


def _draws(kept: Uids, ledger: Ledger) -> int:
    return 3 if len(kept) <= MANY_DRAWS * len(ledger.uid) else 2


def _write_plan(comparison: Comparison) -> None:
    """The plan as it was fixed, once: its date stays that of the first call."""
    path = comparison.folder / "plan.yaml"
    if path.is_file():
        if read_plan(path).digest != comparison.plan.digest:
            raise Refusal("bad-plan", str(path), "is another plan's folder", "one folder a comparison", "Name another --out")
        return
    body = comparison.plan.plain()
    body["record"] = {**body["record"], "digest": comparison.plan.digest, "fixed": time.strftime("%Y-%m-%d", time.gmtime())}
    publish_bytes(path, yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=120).encode())


Submit = Callable[[Comparison, Run, Device], Callable[[], None]]  # starts a run; what it returns waits for its end


@contextmanager
def _executor(jobs: int | None, planned: int, places: Mapping[Run, Device], todo: list[Run], runner: Runner | None) -> Iterator[Submit]:
    """How runs are started: in a pool of one-thread processes; or with `runner`, here, when they are waited for."""
    if runner is not None or not todo:
        yield lambda comparison, run, device: lambda: _at_once(comparison, run, runner)
        return
    from pretrain.machine import side_by_side  # torch, which a runner need not have

    device = "cuda" if "cuda" in places.values() else "cpu"
    pool = ProcessPoolExecutor(min(jobs or side_by_side(planned, device), len(todo)), get_context("spawn"), prepare_worker)
    try:
        yield lambda comparison, run, device: _waiting(pool.submit(work, comparison.work(run, device)), comparison, run)
    finally:
        pool.shutdown(cancel_futures=True)


def _at_once(comparison: Comparison, run: Run, runner: Runner | None) -> None:
    assert runner is not None
    table = runner(run.arm, run.seed, run.objective or "")
    publish_scores(comparison.folder / run.folder / "scores.parquet", table, comparison.identity(run), {})


def _waiting(future: "Future[None]", comparison: Comparison, run: Run) -> Callable[[], None]:
    def wait_for_it() -> None:
        try:
            future.result()
        except BrokenProcessPool as error:
            given = f"a worker was killed at or before {run.folder}, most likely for want of memory"
            raise Refusal(
                "does-not-fit", str(comparison.folder), given, "jobs processes side by side", "Run it again with fewer --jobs: it continues"
            ) from error

    return wait_for_it


def _judge_round(comparison: Comparison, round_: int, moved: bool) -> None:
    """Judge the finished runs where the plan looks (and at the end), else only show the means; then put them into one table.

    moved   whether this call made any run so far: rounds that stood before are only gone over for a look that was missed. The table comes
            last: with its digest it says that its round is judged, so that a finished comparison reads nothing again.
    """
    finished = [r for r in comparison.runs if r.round <= round_]
    count, path = round_ + 1, comparison.folder / "scores.parquet"
    last = count == comparison.seeds
    is_look = count >= MIN_RUNS and (last or count in comparison.plan.looks)
    taken = any(row["runs"] == count for row in read_looks(comparison.folder))
    made_of = digest("scores", comparison.plan.digest, [comparison.identity(r) for r in finished])
    judged = published_digest(path) == made_of and (comparison.folder / "verdicts.parquet").is_file()
    if judged or (not last and not moved and (taken or not is_look)):
        return
    table = pa.concat_tables([_scores_of(comparison, r) for r in finished])
    scores = fold(table, str(path), list(comparison.plan.objectives))
    facts = _facts(comparison, finished, {task.name: task.uids for task in scores.tasks})
    looked = is_look and evaluate(comparison.folder, comparison.plan, scores, facts)
    if not looked and not read_looks(comparison.folder):
        wait(comparison.folder, comparison.plan, scores, facts)
    publish_table(path, table, made_of)


def _scores_of(comparison: Comparison, run: Run) -> pa.Table:
    table = pq.read_table(comparison.folder / run.folder / "scores.parquet")
    n = table.num_rows
    whole = {"objective": [run.objective] * n, "arm": [run.arm] * n, "draw": [run.draw] * n, "run": [run.number] * n}
    return pa.table({**whole, **{name: table[name] for name in table.column_names}}).select(SCHEMA.names).cast(SCHEMA)


def _seconds(comparison: Comparison, run: Run) -> float:
    told = spent_on(comparison.folder / run.folder / "scores.parquet")
    return sum(float(value) for name, value in told.items() if name.startswith("seconds."))


def _facts(comparison: Comparison, finished: list[Run], uids: dict[str, tuple[str, ...]]) -> Facts:
    plan = comparison.plan
    trained = [plan.arm(r.arm) for r in finished if r.objective is not None]
    full = plan.of_kind("full")
    cost = power.proof_cost([comparison.samples_seen(a) for a in trained], comparison.samples_seen(full[0])) if full else None
    leaked: dict[str, frozenset[str]] = {}
    for task in plan.tasks:
        pool = str(Path(str(task.get("test"))).resolve())
        hits = [ledger.leaked[pool] for ledger in comparison.ledgers.values() if pool in ledger.leaked]
        if hits and task["name"] in uids:
            leaked[task["name"]] = frozenset.union(*hits).intersection(uids[task["name"]])
    leakage = {name: len(hit) / len(uids[name]) for name, hit in leaked.items()}
    seconds = sum(_seconds(comparison, r) for r in finished)
    events = comparison.folder / "events.jsonl"
    linked = events.is_file() and '"event": "linked"' in events.read_text(encoding="utf-8")
    fixed = None if linked else read_plan(comparison.folder / "plan.yaml").record.get("fixed")
    rows = {arm.name: comparison.size(arm) for arm in plan.of_kind(*TRAINED)}
    devices: dict[tuple[str | None, str], list[str]] = {}
    for r, device in comparison.devices(finished).items():
        devices.setdefault((r.objective, r.arm), []).append(device)
    return Facts(rows, cost, seconds or None, leakage, leaked, fixed, _settings(comparison), devices)


def _settings(comparison: Comparison) -> dict[str, str]:
    """Queue and k of each LOOK objective, given or by default."""
    from pretrain.objectives.look import look_size, usual_k

    found, classes = {}, max(ledger.num_classes for ledger in comparison.ledgers.values())
    for objective, given in comparison.plan.objectives.items():
        if given.get("name", objective) == "look":
            queue = given.get("queue") or look_size(comparison.smallest(), classes)[0]
            found[objective] = f"queue {queue:,}, k {given.get('k') or usual_k(queue, classes)}"
    return found
