"""THE RECORD, and the floor both other rooms stand on. `manifests.open_run(RUN)` opens a run; nothing here loads torch at import."""

from typing import Any

__all__ = ["diff", "explain", "open_run", "query", "show", "verify"]
_HOMES = {
    "open_run": "manifests.run", "show": "manifests.audit.show", "explain": "manifests.audit.explain", "verify": "manifests.audit.verify",
    "diff": "manifests.audit.diff", "query": "manifests.audit.query"
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """The public functions, imported when first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'manifests' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
