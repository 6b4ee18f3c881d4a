"""Which files below a folder are images, and which are left out and why.

Links to folders are followed. Files that file managers, notebooks or archives leave behind are ignored: hidden names,
`__MACOSX`, `@eaDir` and the like. Names are compared in composed Unicode (NFC), whatever form the file system or an
archive stored.
"""

import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from canvit_gym.scenes.decoding import IMAGE_SUFFIXES, listed

_SYSTEM_FOLDERS = frozenset(
    {"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information"}
)
"""Names that archives, network storage and file systems add, in lower case."""

_UNTOLD = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
"""Files that file managers write everywhere. They are ignored without a warning."""

_THREADS = 8
"""Number of folders read concurrently: on a network file system each takes a round trip."""

PROGRESS_AFTER_S = 2.0


def composed(name: str) -> str:
    """A name in composed Unicode, so that an e with an accent is the same on every file system.

    >>> composed("cafe\\u0301") == "caf\\u00e9"
    True
    """
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def encoded(name: str) -> bytes:
    """The bytes of a composed name, also of one that is not UTF-8 on the disk."""
    return composed(name).encode("utf-8", "surrogateescape")


def printable(name: object) -> str:
    """A path or name that can be written as UTF-8, with escapes for bytes that are not UTF-8."""
    return str(name).encode("utf-8", "backslashreplace").decode("utf-8")


def is_hidden(name: str) -> bool:
    """Whether a file or folder with this name is ignored."""
    return name.startswith(".") or name.casefold() in _SYSTEM_FOLDERS


@dataclass
class Listing:
    """The images below a folder."""

    folder: Path
    names: dict[str, list[str]] = field(default_factory=dict)
    """Path of each folder -> names of the images in it, sorted."""
    hidden: list[str] = field(default_factory=list)
    """Names left out because they are hidden."""
    other_suffixes: Counter[str] = field(default_factory=Counter)
    """Suffix -> number of files that cannot be read."""
    loops: list[str] = field(default_factory=list)
    """Links to one of their parent folders."""

    def __len__(self) -> int:
        return sum(map(len, self.names.values()))

    def paths(self, folders: Iterable[str] | None = None) -> list[str]:
        """Of the images in the given folders (default: all), by folder, then by name."""
        chosen = sorted(self.names) if folders is None else folders
        return [f"{folder}{os.sep}{name}" for folder in chosen for name in self.names[folder]]

    @property
    def left_out(self) -> str:
        """What was left out, in words; empty if nothing was."""
        parts = []
        if self.hidden:
            parts.append(f"{len(self.hidden)} hidden ({listed(sorted(map(printable, self.hidden)), 3)})")
        if self.other_suffixes:
            suffixes = (f"{count} {printable(suffix)}" for suffix, count in self.other_suffixes.most_common())
            parts.append(
                f"{self.other_suffixes.total()} whose suffix is not that of a supported image ({listed(suffixes)})"
            )
        if self.loops:
            parts.append(f"{len(self.loops)} links to a parent folder ({listed(self.loops, 3)})")
        return "; ".join(parts)

    def warn(self) -> None:
        """Warn once about how many files were left out and why."""
        if left_out := self.left_out:
            warnings.warn(f"left out below {printable(self.folder)}: {left_out}", RuntimeWarning, stacklevel=2)


def list_images(
    folder: Path, *, suffixes: Collection[str] = IMAGE_SUFFIXES, recursive: bool = True, top_level: bool = True
) -> Listing:
    """The files below `folder` that have one of the suffixes (in lower case).

    top_level: whether files in `folder` itself count; if not, only images there are reported as left out.
    """
    listing = Listing(folder)
    suffixes = frozenset(suffixes)
    level = [(str(folder), (os.path.realpath(folder),))]
    progress = tqdm(desc=f"Listing {folder.name}", unit=" files", delay=PROGRESS_AFTER_S, leave=False)
    with ThreadPoolExecutor(_THREADS) as pool, progress:
        is_top = True
        while level:
            below: list[tuple[str, tuple[str, ...]]] = []
            for (path, above), (files, folders) in zip(
                level, pool.map(_entries, [path for path, _ in level]), strict=True
            ):
                images = _sort_out(files, suffixes, listing)
                progress.update(len(files))
                if is_top and not top_level:
                    listing.other_suffixes.clear()
                    if images:
                        listing.other_suffixes["in no class's folder"] = len(images)
                elif images:
                    listing.names[path] = images
                for name, is_link in folders:
                    inner = os.path.join(path, name)
                    real = os.path.realpath(inner) if is_link else os.path.join(above[-1], name)
                    if is_hidden(name):
                        listing.hidden.append(name)
                    elif real in above:
                        listing.loops.append(printable(inner))
                    elif recursive:
                        below.append((inner, (*above, real)))
            level, is_top = below, False
    return listing


def _entries(folder: str) -> tuple[list[str], list[tuple[str, bool]]]:
    """(names of files, names of folders with whether each is a link)."""
    files: list[str] = []
    folders: list[tuple[str, bool]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_folder(entry):
                folders.append((entry.name, entry.is_symlink()))
            else:
                files.append(entry.name)
    return files, sorted(folders)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: a file that cannot be read
        return False


def _sort_out(files: list[str], suffixes: frozenset[str], listing: Listing) -> list[str]:
    """The images among the files, sorted; the others are counted."""
    images = []
    for name in files:
        suffix = os.path.splitext(name)[1].lower()
        if suffix in suffixes and name[0] != ".":
            images.append(name)
        elif name in _UNTOLD:
            continue
        elif is_hidden(name):
            listing.hidden.append(name)
        else:
            listing.other_suffixes[suffix or "without a suffix"] += 1
    return sorted(images)
