"""The processes of this machine: how many cores there are for them, and that a worker does not outlive who spawned it."""

import os
import threading
import time

WATCH = 0.5  # seconds between two looks for the parent


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """End this process soon after its parent: called once in each spawned worker. A killed parent cannot stop it, and it would write on where nobody holds the lock."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
