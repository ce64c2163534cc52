"""THE DECISIONS: pool -> columns -> verdicts -> ledger -> shards. `curate.build(...)` is what `curate build` runs."""

from typing import Any

__all__ = ["append", "audit", "build", "replay", "sweep"]
_HOMES = {
    "append": "curate.appending",
    "build": "curate.building",
    "audit": "curate.auditing",
    "replay": "curate.replaying",
    "sweep": "curate.sweeping",
}  # not modules of the same name: an imported submodule would hide the function


def __getattr__(name: str) -> Any:
    """The public functions, imported when first asked for: `import curate` stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'curate' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
