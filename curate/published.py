"""Weights that timm and open_clip publish: the one file on this machine that holds them, so that they are known by content and not by name.

A name may come to hold other weights: by a release of its package, an update on the hub, another cache. So a file that lies in a cache is used as it is, and
nobody asks whether there is a newer one: that one comes when the old one is taken out of the cache, and vectors are then measured again.
"""

import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests.errors import Refusal

USUAL = {  # what a repository on the hub calls its weights, in the order in which the libraries look
    "timm": ("model.safetensors", "pytorch_model.bin"),
    "open_clip": ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
}


@dataclass(frozen=True)
class Place:
    """Where weights are published: files of a repository on the hub, the best first; or, without one, a URL and the folder that keeps what it gave."""

    repository: str
    revision: str | None
    names: tuple[str, ...]
    url: str
    folder: Path

    def kept(self) -> Path | None:
        """The file on this machine, if there is one; nothing is asked of the network."""
        from huggingface_hub import try_to_load_from_cache

        if not self.repository:
            file = self.folder / os.path.basename(urllib.parse.urlsplit(self.url).path)
            return file if file.is_file() else None
        found = (try_to_load_from_cache(self.repository, name, revision=self.revision) for name in self.names)
        return next((Path(file) for file in found if isinstance(file, str)), None)

    def bring(self) -> None:
        """Download the file to where `kept` finds it."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
        from torch.hub import download_url_to_file

        if not self.repository:
            self.folder.mkdir(parents=True, exist_ok=True)
            download_url_to_file(self.url, str(self.folder / os.path.basename(urllib.parse.urlsplit(self.url).path)), progress=False)
            return
        for name in self.names:
            try:
                hf_hub_download(self.repository, name, revision=self.revision)
                return
            except EntryNotFoundError:
                if name == self.names[-1]:
                    raise


def published_file(kind: str, model: str, tag: str | None, *, fetch: bool = False) -> Path | None:
    """The file with the weights that `kind` (timm, open_clip) publishes for `model` (and `tag`).

    None where nothing of that name is published, and, unless it is to be fetched, where it is not on this machine.
    Raises `Refusal` [no-such-file] where it is to be fetched and cannot be had.
    """
    place = _timm_place(model) if kind == "timm" else _open_clip_place(model, str(tag))
    if place is None:
        return None
    found = place.kept()
    if found is None and fetch:
        with _or_refuse(f"{kind}:{model}" + (f"/{tag}" if tag else "")):
            place.bring()
        found = place.kept()
    return found


def _timm_place(model: str) -> Place | None:
    import timm
    import torch

    try:
        settings: Any = timm.get_pretrained_cfg(model, allow_unregistered=True)
    except RuntimeError:  # the model has no weights of this tag
        return None
    if not settings or not (settings.hf_hub_id or settings.url):
        return None
    repository, _, revision = (settings.hf_hub_id or "").partition("@")
    return Place(repository, revision or None, _names("timm", settings.hf_hub_filename), settings.url or "", Path(torch.hub.get_dir(), "checkpoints"))


def _open_clip_place(model: str, tag: str) -> Place | None:
    import open_clip

    settings = open_clip.get_pretrained_cfg(model, tag)
    if not settings:
        return None
    repository, _, name = (settings.get("hf_hub") or "").rpartition("/")
    return Place(repository, None, _names("open_clip", name), settings.get("url") or "", Path.home() / ".cache" / "clip")


def _names(kind: str, given: str | None) -> tuple[str, ...]:
    """The names to look for: those that are usual, or the one that is given, its safetensors form first."""
    if not given or given in USUAL[kind]:
        return USUAL[kind]
    return tuple(dict.fromkeys([str(Path(given).with_suffix(".safetensors")), given]))


@contextmanager
def _or_refuse(spec: str) -> Iterator[None]:
    """What is asked of the network inside: not at all where it is not there, and weights that cannot be had become a refusal."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    was_offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = was_offline or not _is_reachable(constants.ENDPOINT)  # else it would try for most of a minute
    try:
        yield
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError, RuntimeError) as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        given = f"the weights of {spec!r} are neither here nor to be had ({why[:200].rstrip('. ')})"
        raise Refusal("no-such-file", "encoder", given, "", "Give a weight file after the model's name") from error
    finally:
        constants.HF_HUB_OFFLINE = was_offline


def _is_reachable(endpoint: str) -> bool:
    """Does the name of the weights' host resolve? Behind a proxy nobody can tell: then yes."""
    if urllib.request.getproxies():
        return True
    try:
        return bool(socket.getaddrinfo(urllib.parse.urlsplit(endpoint).hostname, 443))
    except OSError:
        return False
