"""Names of checkpoints and probes, and where their files are.

A name is, in this order: one of `CHECKPOINTS` or `PROBES` or the repository it stands for (all from
canvit_pytorch.hub.repos, under $CANVIT_HUB_ROOT or the Hub's `canvit` organization), an existing directory, or
a Hub id "org/name". Files from the Hub are downloaded by huggingface_hub into its cache; after that everything is a
local directory that canvit-pytorch loads.
"""

import errno
import hashlib
import os
import re
import socket
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

from canvit_pytorch.hub import repos
from canvit_pytorch.pretrain.ablations import ABLATIONS
from canvit_pytorch.project import HUB_ORGANIZATION
from huggingface_hub import constants as hub_constants
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from canvit_gym.checks import expanded

Kind = Literal["checkpoint", "probe", "policy"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"

CHECKPOINTS: dict[str, str] = {
    name: Path(repo).name
    for name, repo in {
        "flagship": repos.FLAGSHIP,
        **{f"pretrained-{dataset}": repo for dataset, repo in repos.PRETRAINED.items()},
        "finetuned-in1k": repos.FINETUNED_IN1K,
        **{f"finetuned-in1k-nnx-{dataset}": repo for dataset, repo in repos.FINETUNED_IN1K_NNX.items()},
        **{ablation.probe_model_name: ablation.released_repo for ablation in ABLATIONS.values()},
    }.items()
}
"""Short name -> repository within the organization. "nano", which this package ships, is another."""

PROBES: dict[str, str] = {"dinov3-vitb16-in1k": Path(repos.DINOV3_VITB16_IN1K_PROBE).name}
"""Classification probes. Segmentation probes are chosen by geometry: see `ade20k_probe`."""

_PROBE_MODELS: dict[str, str] = {
    **{Path(repo).name: dataset for dataset, repo in repos.PRETRAINED.items()},
    **{Path(ablation.released_repo).name: ablation.probe_model_name for ablation in ABLATIONS.values()},
}
"""Repository of a checkpoint -> how ADE20K probe names refer to it."""

_ADE20K_GEOMETRIES: dict[str, tuple[tuple[int, int], ...]] = {
    "in21k": (*((512, grid) for grid in (8, 9, 10, 12, 16, 24, 32, 64)), (1024, 64)),
    "in1k": ((512, 32), (512, 64)),
    **{ablation.probe_model_name: ((512, 32),) for ablation in ABLATIONS.values()},
}
"""(scene_size_px, canvas grid) of the probes behind the paper's ADE20K results: canvit_pytorch.evaluate's settings."""

_UNREACHABLE = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH)

_PROBE_NAME = re.compile(r"probe-ade20k-\d+k-s(?P<scene>\d+)-c(?P<grid>\d+)-(?P<model>.+)")


@dataclass(frozen=True)
class Source:
    """Where a checkpoint or a probe was found. Hashable: it is the cache key of what is loaded once per process."""

    kind: Kind
    name: str
    """The name as given."""
    repo: str | None
    """Hub id; None for a local directory."""
    revision: str | None
    """The Hub commit of the files; None for a local directory."""
    directory: Path
    stamp: tuple[int, int]
    """Modification time and size of the weights: a rewritten directory is another source."""

    @property
    def sha256(self) -> str:
        return _sha256(self.directory / WEIGHTS, self.stamp)

    @property
    def record(self) -> dict[str, str | None]:
        """JSON values that say what was loaded, without the directories of this machine."""
        name = self.name if self.repo or "/" not in self.name else self.directory.name
        return {"name": name, "repo": self.repo, "revision": self.revision, "sha256": self.sha256}


_used: dict[Source, None] = {}


def mark_used(source: Source) -> None:
    """Remember that this process uses a source, and the hash of what it has just loaded."""
    _sha256(source.directory / WEIGHTS, source.stamp)
    _used[source] = None


def used_sources() -> list[dict[str, str | None]]:
    """The records of all checkpoints and probes this process has loaded, in that order; saved with every result."""
    return [{"kind": source.kind, **source.record} for source in _used]


@cache
def _sha256(path: Path, stamp: tuple[int, int]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def asset_dir(name: str) -> Path:
    """A directory of this package's assets."""
    return Path(str(resources.files("canvit_gym"))) / "assets" / name


@cache
def _shipped() -> tuple[str, ...]:
    """Checkpoints and probes among this package's assets."""
    return tuple(path.parent.name for path in asset_dir("").glob(f"*/{WEIGHTS}"))


def find_repository(kind: Kind, repo: str, files: tuple[str, ...]) -> Path:
    """The directory of a Hub repository "org/name": below $CANVIT_HUB_ROOT if that is a directory, else downloaded.

    Raises:
        FileNotFoundError: there is no such repository, or it lacks one of `files`.
    """
    root = Path(hub_root())
    directory = root / repo if root.is_dir() else _download(kind, repo, repo, files, None)[0]
    if missing := [file for file in files if not (directory / file).is_file()]:
        raise FileNotFoundError(
            f"there is no directory {repo}, and {kind} {repo!r}: {directory} has no {' and no '.join(missing)}"
        )
    return directory


def hub_root() -> str:
    """$CANVIT_HUB_ROOT, a directory laid out like the organization; the organization if that is unset or empty."""
    return os.path.expanduser(os.environ.get("CANVIT_HUB_ROOT") or HUB_ORGANIZATION).rstrip("/")


def _is_spelled_as_path(root: str) -> bool:
    """Whether `root` cannot be an organization of the Hub."""
    return any(sign in root for sign in "/~.")


def _names_help() -> str:
    return f"Released names: nano, {', '.join(CHECKPOINTS)}; probes: {', '.join(PROBES)}, probe-ade20k-…"


def _released_repo(name: str) -> str | None:
    """The repository within the organization that a name stands for, if it is one of CanViT's."""
    bare = name.removeprefix(f"{HUB_ORGANIZATION}/")
    known = {**CHECKPOINTS, **PROBES}
    if bare in known and bare == name:
        return known[bare]
    return bare if bare in known.values() or _PROBE_NAME.fullmatch(bare) else None


def locate(kind: Kind, name: str, *, files: tuple[str, ...], revision: str | None = None) -> Source:
    """The directory that holds `files` of a checkpoint or probe, downloaded from the Hub if needed.

    Raises:
        FileNotFoundError: no such name, directory, repository, revision or file; or neither network nor cache.
        ValueError: a revision of something that has no revisions.
    """
    repo, commit = None, None
    if name in _shipped():
        directory = asset_dir(name)
    elif released := _released_repo(name):
        directory, root = Path(hub_root()) / released, Path(hub_root())
        if root.is_dir():
            _require_in_root(kind, name, root, released)
        elif _is_spelled_as_path(hub_root()):
            here = "" if root.is_absolute() else f" (looked for from {Path.cwd()})"
            raise FileNotFoundError(f"$CANVIT_HUB_ROOT={hub_root()} is not a directory{here}. Unset it to use the Hub.")
        else:
            repo = f"{hub_root()}/{released}"
    elif (directory := expanded(kind, name)).is_dir() or (
        name.count("/") == 1 and (directory := Path(hub_root()) / name).is_dir()
    ):
        pass
    elif expanded(kind, name).is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise FileNotFoundError(
            f"{kind} {name!r} is neither 'nano', 'flagship' or another released name, nor an existing directory, nor "
            f"a Hub id 'org/name'. {_names_help()}."
        )
    else:
        repo = name
    if repo is not None:
        try:
            directory, commit = _download(kind, name, repo, files, revision)
        except FileNotFoundError as error:
            if repo == name or hub_root() == HUB_ORGANIZATION:
                raise
            raise FileNotFoundError(
                f"{error} ($CANVIT_HUB_ROOT={hub_root()} is no directory in {Path.cwd()}, so it is taken for an "
                "organization of the Hub.)"
            ) from error
    elif revision is not None:
        raise ValueError(
            f"{kind} {name!r} is the directory {directory}, which has no revision {revision!r}: revisions are of Hub "
            "repositories. Leave revision out."
        )
    for file in files:
        if not (directory / file).is_file():
            raise FileNotFoundError(
                f"{kind} {name!r}: {directory} has no {file}. A {kind} directory holds {' and '.join(files)}, "
                "as canvit-pytorch's save_pretrained writes them."
            )
    stat = (directory / WEIGHTS).stat()
    stamp = (stat.st_mtime_ns, stat.st_size)
    return Source(kind=kind, name=name, repo=repo, revision=commit, directory=directory.resolve(), stamp=stamp)


def _require_in_root(kind: Kind, name: str, root: Path, released: str) -> None:
    if not (root / released).is_dir():
        held = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir())) or "nothing"
        raise FileNotFoundError(
            f"{kind} {name!r}: $CANVIT_HUB_ROOT={root} has no directory {released}; it holds {held}. Download it there "
            f"(hf download {HUB_ORGANIZATION}/{released} --local-dir {root / released}) or unset $CANVIT_HUB_ROOT."
        )


@cache
def _download(kind: Kind, name: str, repo: str, files: tuple[str, ...], revision: str | None) -> tuple[Path, str]:
    """(snapshot directory, commit). All files are of one commit; cached files cost one network request."""
    what = f"{kind} {name!r}" + ("" if name == repo else f" ({repo})")
    # A mistyped directory looks like a Hub id: whoever meant one should read this first.
    lead = f"there is no directory {name}, and " if name == repo else ""
    try:
        first = _download_file(repo, files[0], revision)
        commit = first.parent.name
        for file in files[1:]:
            hf_hub_download(repo, file, revision=commit)
    except LocalEntryNotFoundError as error:
        offline = " ($HF_HUB_OFFLINE is set: unset it to use the network.)" if hub_constants.HF_HUB_OFFLINE else ""
        reason = "" if (cause := _no_way_out(error)) is None else f" ({cause})"
        pinned = "" if revision is None else f" --revision {revision}"
        raise FileNotFoundError(
            f"{lead}{what} is not in the Hub's cache ({hub_constants.HF_HUB_CACHE}), and the Hub cannot be reached"
            f"{reason}.{offline} With a network, run: hf download {repo}{pinned} {' '.join(files)}. Without one, copy "
            f"that cache here, or name a directory with the files ({kind}='directory'), or set $CANVIT_HUB_ROOT to a "
            f"directory that holds {repo.split('/')[-1]}/." + ("" if lead else " checkpoint='nano' needs no download.")
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{what} has no revision {revision!r}. Give a branch, tag or commit of https://huggingface.co/{repo}, or "
            "leave revision out."
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{lead}{what}: the Hub has no repository {repo}, or it needs a login (hf auth login). {_names_help()}."
        ) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(
            f"{what}: the repository lacks one of {' and '.join(files)}; it is no {kind} of canvit-pytorch."
        ) from error
    except HFValidationError as error:
        raise FileNotFoundError(f"{lead}{what} is not a Hub id 'org/name': {error}. {_names_help()}.") from error
    return first.parent, commit


def _download_file(repo: str, file: str, revision: str | None) -> Path:
    """The file in the Hub's cache, downloaded if it is not there.

    Raises:
        LocalEntryNotFoundError: neither network nor cache. And whatever else hf_hub_download raises.
    """
    if not isinstance(try_to_load_from_cache(repo, file, revision=revision), str):
        # hf_hub_download would try five times, for half a minute, even where there is no network.
        try:
            get_hf_file_metadata(hf_hub_url(repo, file, revision=revision))
        except Exception as error:  # that of an HTTP library which depends on the version of huggingface_hub
            if (reason := _no_way_out(error)) is not None:
                raise LocalEntryNotFoundError(f"cannot reach the Hub: {reason}") from reason
    return Path(hf_hub_download(repo, file, revision=revision))


def _no_way_out(error: BaseException | None) -> OSError | None:
    """The cause of an error for which another try would not help: a host's name cannot be resolved, or the host not be
    reached."""
    while error is not None:
        if isinstance(error, socket.gaierror) or (isinstance(error, OSError) and error.errno in _UNREACHABLE):
            return error
        error = error.__cause__ or error.__context__
    return None


def ade20k_probe(checkpoint: Source, *, scene_size_px: int, canvas_grid: int) -> str:
    """The name of the released ADE20K probe on a checkpoint's canvas at a geometry.

    Raises:
        ValueError: there is none; the message lists the available ones.
    """
    fit = (
        "fit one (canvit-gym fit-probe --env CanViT/ADE20K-v0 "
        f"--checkpoint {checkpoint.name} --canvas-grid {canvas_grid}) and pass probe='directory'"
    )
    repository = CHECKPOINTS.get(checkpoint.name, (checkpoint.repo or str(checkpoint.directory)).split("/")[-1])
    model = _PROBE_MODELS.get(repository)
    if model is None:
        raise ValueError(
            f"checkpoint {checkpoint.name!r} has no released ADE20K probe: {fit}, or use checkpoint='flagship'"
        )
    geometries = {*_ADE20K_GEOMETRIES[model], *_geometries_in_root(model)}
    if (scene_size_px, canvas_grid) not in geometries:
        listed = "; ".join(
            f"scene_size_px={scene} with canvas_grid={' or '.join(str(g) for s, g in sorted(geometries) if s == scene)}"
            for scene in sorted({scene for scene, _ in geometries})
        )
        raise ValueError(
            f"checkpoint {checkpoint.name!r} has no released ADE20K probe for scenes of {scene_size_px} px on a "
            f"{canvas_grid} x {canvas_grid} canvas. There are: {listed}. Use one of these, or {fit}"
        )
    return Path(repos.released_ade20k_probe(model, scene_size_px=scene_size_px, canvas_grid_size=canvas_grid)).name


def _geometries_in_root(model: str) -> set[tuple[int, int]]:
    root = Path(hub_root())
    names = [_PROBE_NAME.fullmatch(path.name) for path in root.iterdir()] if root.is_dir() else []
    return {(int(found["scene"]), int(found["grid"])) for found in names if found and found["model"] == model}
