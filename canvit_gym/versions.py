"""Versions of installed packages, for records and messages."""

from importlib.metadata import PackageNotFoundError, version

NOT_INSTALLED = "not installed"


def package_version(package: str) -> str:
    """The version of an installed package. NOT_INSTALLED where it is not: canvit_gym itself runs from a clone too."""
    try:
        return version(package)
    except PackageNotFoundError:
        return NOT_INSTALLED
