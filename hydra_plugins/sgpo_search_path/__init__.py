"""Hydra finds this by its place: it adds sgpo-verl's config groups (``+sgpo=...``, ``+runtime=cpu``) to every app."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class SgpoSearchPath(SearchPathPlugin):
    """Appends ``pkg://sgpo_verl.conf``: appended last, so that a user's own groups of the same name win."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="sgpo-verl", path="pkg://sgpo_verl.conf")
