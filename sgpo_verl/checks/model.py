"""The model's files: all there, long enough a context, and heads that divide among the devices of a server."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgpo_verl.checks.devices import ROLLOUT, count_at, sequence_parallel
from sgpo_verl.checks.findings import Doubt
from sgpo_verl.errors import SgpoError
from sgpo_verl.provenance import describe_model
from sgpo_verl.run_config import group_at, value_at

MODEL = "actor_rollout_ref.model"
KEY = f"{MODEL}.path"
CONTEXT = "max_position_embeddings"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")


def check_model(config: Mapping[str, Any]) -> str:
    """The model in words. Raises SgpoError naming what its folder lacks, or the key that its shape does not allow."""
    path = value_at(config, KEY)
    described = describe_model(path)
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return _of_hub(path, described.get("revision"))
    shape = _shape(config, path, folder)
    _check_weights(config, path, folder)
    if not group_at(config, MODEL).get("tokenizer_path") and not any((folder / name).is_file() for name in TOKENIZERS):
        raise SgpoError(f"{KEY}={path}: no tokenizer in this folder", "copy the model's tokenizer files there")
    _check_heads(config, shape)
    context = _check_context(config, shape)
    return f"{shape.get('model_type', 'a model')} in {path}, context {context}"


def _of_hub(path: str, revision: str | None) -> str:
    if revision:
        return f"{path}, revision {revision[:12]}, from the hub's cache"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        raise SgpoError(
            f"{KEY}={path}: not in the hub's cache of this machine, and HF_HUB_OFFLINE is set",
            "download it, or name a folder",
        )
    return f"{path}, to be fetched from its hub"


def _shape(config: Mapping[str, Any], path: str, folder: Path) -> dict[str, Any]:
    """config.json with what the run overrides; of a model of several parts, its language part on top.

    Raises SgpoError if it cannot be read.
    """
    try:
        shape = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SgpoError(f"{KEY}={path}: its config.json cannot be read ({reason})") from None
    if not isinstance(shape, dict):
        raise SgpoError(f"{KEY}={path}: its config.json is not an object")
    override = group_at(config, f"{MODEL}.override_config")
    if "model_config" in override:  # verl's form for Megatron
        override = group_at(config, f"{MODEL}.override_config.model_config")
    shape = _overridden(shape, override)
    inner = shape.get("text_config")
    if not isinstance(inner, dict):
        return shape
    whole = {CONTEXT: shape[CONTEXT]} if shape.get(CONTEXT) is not None else {}  # verl looks there first
    return {**shape, **inner, **whole}


def _overridden(shape: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """As verl's update_model_config: a group changes a part of the model, anything else takes a value's place."""
    changed = {
        key: _overridden(shape.get(key) or {}, value) if isinstance(value, Mapping) else value
        for key, value in override.items()
    }
    return {**shape, **changed}


def _check_weights(config: Mapping[str, Any], path: str, folder: Path) -> None:
    """A download that was cut off lacks some of the files that its index names."""
    for index in sorted(folder.glob("*.index.json")):
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # not an index of weights
        if missing := sorted(name for name in named if not (folder / name).is_file()):
            raise SgpoError(
                f"{KEY}={path}: {len(missing)} of the {len(named)} weight files in {index.name} are not there (first: "
                f"{missing[0]})",
                "download them",
            )
    if not [file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin")]:
        raise SgpoError(f"{KEY}={path}: no weights in this folder (.safetensors or .bin)")


def _check_heads(config: Mapping[str, Any], shape: Mapping[str, Any]) -> None:
    heads = shape.get("num_attention_heads")
    if not isinstance(heads, int):
        return
    sizes = {f"{ROLLOUT}.tensor_model_parallel_size": count_at(config, f"{ROLLOUT}.tensor_model_parallel_size")}
    split, key = sequence_parallel(config)
    if key.endswith("ulysses_sequence_parallel_size"):  # which deals heads out, where Megatron deals out tokens
        sizes[key] = split
    for key, size in sizes.items():
        if heads % size:
            raise SgpoError(f"{key}={size}: the model's {heads} attention heads do not divide by it", "lower it")


def _check_context(config: Mapping[str, Any], shape: Mapping[str, Any]) -> int | str:
    """Tokens that the rollout servers take: rope_scaling or not, verl goes by max_position_embeddings.

    Raises SgpoError, or Doubt where answers would be cut short.
    """
    longest, given = shape.get(CONTEXT), value_at(config, f"{ROLLOUT}.max_model_len")
    if not isinstance(longest, int):
        return given or "unknown"
    if isinstance(given, int) and given > longest:
        more = (
            f", or, if it can do with more, set {MODEL}.override_config.{CONTEXT}" if shape.get("rope_scaling") else ""
        )
        raise SgpoError(
            f"{ROLLOUT}.max_model_len={given} is more than the model's {longest} ({CONTEXT})",
            f"set it to {longest} or less{more}",
        )
    limit = given if isinstance(given, int) else longest
    prompt, response = count_at(config, "data.max_prompt_length"), count_at(config, "data.max_response_length")
    if prompt >= limit:
        raise SgpoError(
            f"data.max_prompt_length={prompt} leaves no room for an answer in a context of {limit}", "lower it"
        )
    if prompt + response > limit:
        raise Doubt(
            f"data.max_prompt_length + data.max_response_length = {prompt + response} is more than the context of {limit}: "
            "answers to long prompts are cut short",
            "lower the one or the other",
        )
    return limit
