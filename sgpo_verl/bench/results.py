"""A finished run for the report: with its model's shape, wherever the model came from."""

import json
from pathlib import Path

from sgpo_verl.bench.execute import read, write_whole
from sgpo_verl.cost import shape_from_config
from sgpo_verl.report.runs import Run, RunConfig, load_run


def load(directory: Path) -> Run:
    """The run. A model that has a hub's name was fetched by the run itself: its shape is put into run.json."""
    facts = read(directory / "run.json")
    config = _cached_config(
        str(RunConfig(directory / ".hydra" / "config.yaml").get("actor_rollout_ref.model.path") or "")
    )
    if config is not None and "model_shape" not in facts:
        shape = shape_from_config(json.loads(config.read_text()), str(config))
        write_whole(directory / "run.json", {**facts, "model_shape": shape.to_dict()})
    return load_run(directory)


def _cached_config(name: str) -> Path | None:
    """config.json of a hub's model in the local cache; None for a folder, or where it is not."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(name).expanduser().is_dir():
        return None
    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None
