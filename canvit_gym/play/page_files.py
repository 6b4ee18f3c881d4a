"""The files of the pages, which are part of the package."""

from importlib import resources


def read_page(name: str) -> bytes:
    """One file of canvit_gym/play/page."""
    return resources.files("canvit_gym.play").joinpath("page", name).read_bytes()
