"""A training's folder: state to go on from, and at the end a model that timm loads.

state.pt            weights, objective, optimiser, position, random state; while the training runs
metrics.jsonl       one row a step
model.safetensors   the backbone alone, under its own names
config.json         timm's description and ours; written last: present with the right digest = done
"""

import io
import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from manifests.errors import Refusal
from manifests.publish import publish_bytes, publish_json
from pretrain.backbones import Backbone, describe_backbone
from pretrain.data import Position


def finished(folder: Path, digest: str) -> bool:
    """Whether `folder` holds the finished training `digest`. Raises `Refusal` [bad-value] where it holds another one."""
    found = None
    if (folder / "config.json").is_file():
        try:
            found = json.loads((folder / "config.json").read_text(encoding="utf-8"))["keepset"]["training"]["digest"]
        except (ValueError, KeyError, TypeError):
            found = ""  # a model that was not trained here, or a damaged description
    elif (folder / "state.pt").is_file():
        found = _load(folder)["digest"]
    if found not in (None, digest):
        raise Refusal(
            "bad-value",
            str(folder),
            "holds a model, or a training of another configuration or other data",
            "one training a folder",
            "Give another `out`, or remove this folder",
        )
    return found == digest and (folder / "config.json").is_file()


def save_state(
    folder: Path,
    digest: str,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    position: Position,
    rows: list[dict[str, Any]],
    spent: dict,
) -> None:
    """Publish all that the next step depends on; `rows` are the metrics of the steps so far, `spent` the seconds and the devices."""
    state = {
        "digest": digest, "objective": objective.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "position": asdict(position), "spent": spent,
        "random": torch.get_rng_state(), "random_cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }  # fmt: skip
    save_metrics(folder, rows)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    publish_bytes(folder / "state.pt", buffer.getvalue())


def load_state(folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, Position, list[dict[str, Any]], dict]:
    """(step, position, metrics so far, what was spent); step 0 where nothing was saved. Sets modules, optimiser and random state."""
    if not (folder / "state.pt").is_file():
        return 0, Position(), [], {"seconds": 0.0, "cpu_seconds": 0.0}
    state = _load(folder)
    objective.load_state_dict(state["objective"], strict=True)
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    if state["random_cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["random_cuda"])
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[: state["step"]]
    return state["step"], Position(**state["position"]), [json.loads(line) for line in lines], state["spent"]


def _load(folder: Path) -> dict[str, Any]:
    broken = Refusal("broken-record", str(folder / "state.pt"), "is not a saved state", "", "Remove it: the training starts again")
    try:
        found = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise broken from error
    if not isinstance(found, dict) or "digest" not in found:
        raise broken
    return found


def save_metrics(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Publish metrics.jsonl."""
    publish_bytes(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())


def save_model(folder: Path, backbone: Backbone, training: dict[str, Any]) -> None:
    """Publish the trained backbone and, last, its description with `training` (digest, configuration, cost); the state is no longer needed."""
    from safetensors.torch import save

    weights = {name: value.detach().cpu().contiguous() for name, value in backbone.net.state_dict().items()}
    publish_bytes(folder / "model.safetensors", save(weights, metadata={"format": "pt"}))
    described = describe_backbone(backbone)
    described["keepset"]["training"] = training
    publish_json(folder / "config.json", described)
    (folder / "state.pt").unlink(missing_ok=True)
