"""Results in task order from spawned processes; a failed task is retried once, then named."""

import os
import signal
import time

import pytest

from curate.engine_local import map_tasks, tell
from manifests.errors import Refusal


def square(task):
    return task * task


def once_broken(path):
    """Fails the first time it is called for a path."""
    if not os.path.exists(path):
        open(path, "w").close()
        raise OSError("a hiccup of the disk")
    return path


def deadly(task):
    if task == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def telling(task):
    """Tells four units, slowly; the first time that it is called for a path it fails behind the second."""
    steps, path = task
    for step in range(steps):
        if path and step == 2 and not os.path.exists(path):
            open(path, "w").close()
            raise OSError("a hiccup of the disk")
        time.sleep(0.15)
        tell(1)
    return steps


def refuse(task):
    raise Refusal("bad-value", "task", str(task))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_task_order(workers):
    assert list(map_tasks(square, list(range(9)), workers=workers)) == [i * i for i in range(9)]


def test_a_hiccup_is_retried(tmp_path):
    paths = [str(tmp_path / f"{i}") for i in range(3)]
    assert list(map_tasks(once_broken, paths, workers=2)) == paths


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_what_tasks_tell_is_heard_while_they_run(workers):
    heard = []
    tasks = [(4, None)] * 5
    assert list(map_tasks(telling, tasks, workers=workers, watch=heard.append)) == [4] * 5
    assert heard == sorted(heard)
    assert heard[-1] == 20
    assert {h for h in heard if h % 4}  # also inside a task
    assert list(map_tasks(telling, tasks[:1], workers=2, watch=heard.append)) == [4]
    assert heard[-4:] == [1, 2, 3, 4]
    tell(1)  # of no task: nobody hears it
    assert heard[-1] == 4


def test_a_task_that_is_tried_again_tells_no_more_than_it_does(tmp_path):
    heard = []
    assert list(map_tasks(telling, [(4, str(tmp_path / "a")), (4, None), (4, str(tmp_path / "b"))], workers=2, watch=heard.append)) == [4] * 3
    assert heard[-1] == 12


def test_a_worker_that_dies_twice_is_named():
    with pytest.raises(Refusal) as caught:
        list(map_tasks(deadly, [0, 1, 2], workers=2))
    assert caught.value.slug == "does-not-fit"
    assert "task" in str(caught.value)


def test_a_refusal_comes_back_whole():
    with pytest.raises(Refusal) as caught:
        list(map_tasks(refuse, [1, 2], workers=2))
    assert caught.value.slug == "bad-value"
