"""Where a model lies on this machine: in a folder, or in the local cache of a hub. Asks no network."""

import os
from pathlib import Path

from sgpo_verl.errors import SgpoError


def cached_config(name: str) -> Path | None:
    """``config.json`` of the model with this name on a hub, if the cache has it: ``.../snapshots/<commit>/config.json``.

    Raises SgpoError if no hub's name is written so.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError as error:
        raise SgpoError(f"actor_rollout_ref.model.path={name}: no folder here and no name of a hub ({error})") from None
    return Path(found) if isinstance(found, str) else None


def model_folder(path: str) -> Path | None:
    """The folder with the ``config.json`` of a model known by its folder or by its name on a hub; None if it is not here."""
    folder = Path(os.path.expanduser(path))
    if os.path.isdir(folder):
        return folder
    try:
        config = cached_config(path)
    except SgpoError:
        return None
    return config.parent if config else None
