"""The one place where verl's version is looked at."""

import importlib.metadata

from packaging.specifiers import SpecifierSet

from sgpo_verl import SUPPORTED_VERL
from sgpo_verl.errors import SgpoError


def check_verl_version() -> str:
    """verl's version. Raises SgpoError, with the supported range and how to get there, if it is none of ours."""
    try:
        found = importlib.metadata.version("verl")
    except importlib.metadata.PackageNotFoundError:
        raise SgpoError(f"verl is not installed here: pip install 'verl{SUPPORTED_VERL}'") from None
    if not SpecifierSet(SUPPORTED_VERL).contains(found, prereleases=True):
        raise SgpoError(f"verl {found} is not supported: pip install 'verl{SUPPORTED_VERL}'")
    return found
