"""Versions of installed packages, for records and messages."""

from importlib.metadata import PackageNotFoundError, version

NOT_INSTALLED = "not installed"


def package_version(package: str) -> str:
    """The version of an installed package, or NOT_INSTALLED, since canvit_gym itself may run from a clone."""
    try:
        return version(package)
    except PackageNotFoundError:
        return NOT_INSTALLED
