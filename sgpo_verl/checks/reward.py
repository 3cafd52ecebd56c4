"""The reward function: its file is Python, it loads, it is there by its name and takes what verl gives it.

It is loaded in a process of its own, with a time limit: what a file does on import stays there.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sgpo_verl.checks.findings import Doubt
from sgpo_verl.errors import SgpoError
from sgpo_verl.run_config import group_at

FILE, NAME = "reward.custom_reward_function.path", "reward.custom_reward_function.name"
PATIENCE = 6.0  # seconds
LEGACY = ("custom_reward_function", "reward_model", "sandbox_fusion")  # of verl before 0.9: all null, and not read
MOVED = {
    "reward_model.reward_manager": "reward.reward_manager.name",
    "reward_model.reward_loop_source": "reward.reward_manager.source",
    "reward_model.reward_loop_module_path": "reward.reward_manager.module.path",
    "reward_model.reward_loop_class_name": "reward.reward_manager.module.name",
    "reward_model.num_workers": "reward.num_workers",
    "reward_model.reward_kwargs": "reward.reward_kwargs",
    "reward_model.model.path": "reward.reward_model.model_path",
}  # the others are where they were, under reward
GIVEN = ("data_source", "solution_str", "ground_truth", "extra_info")  # verl's reward managers give these by name

LOAD = """
import importlib, importlib.util, inspect, json, os, sys
path, name, names = sys.argv[1], sys.argv[2], sys.argv[3:]
out = os.fdopen(os.dup(1), "w"); os.dup2(2, 1)
def say(**said):
    print(json.dumps(said), file=out, flush=True)
    os._exit(0)
try:
    if path.startswith("pkg://"):
        module = importlib.import_module(path[6:].replace("/", "."))
    else:
        spec = importlib.util.spec_from_file_location("custom_module", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules["custom_module"] = module
        spec.loader.exec_module(module)
except BaseException as error:
    frames, trace = [], error.__traceback__
    while trace:
        frames.append(trace)
        trace = trace.tb_next
    place = [f for f in frames if "importlib" not in f.tb_frame.f_code.co_filename][-1:]
    line = f", line {place[0].tb_lineno}" if place and place[0].tb_frame.f_code.co_filename == path else ""
    say(raised=f"{type(error).__name__}: {error}", line=line)
function = getattr(module, name, None)
if not callable(function):
    say(missing=True)
try:
    inspect.signature(function).bind(**dict.fromkeys(names))
except TypeError as error:
    say(refuses=str(error))
except ValueError:
    pass
say()
"""


def check_reward(config: Mapping[str, Any]) -> str:
    """The reward in words. Raises SgpoError naming the key if its function cannot be had, or nobody reads the key."""
    _check_legacy(config)
    custom = group_at(config, "reward.custom_reward_function")
    path, name = str(custom.get("path") or "").removeprefix("file://"), str(custom.get("name"))
    if not path:
        return "verl's own scores, by data_source"
    if path.startswith("~"):
        raise SgpoError(f"{FILE}={path}: verl takes ~ for a folder's name", f"write {Path(path).expanduser()}")
    if not path.startswith("pkg://"):
        _check_source(path, name)
    kwargs = custom.get("reward_kwargs") or {}
    if not isinstance(kwargs, Mapping):
        raise SgpoError(f"reward.custom_reward_function.reward_kwargs={kwargs!r}: is a group of settings")
    said = _load(path, name, [*GIVEN, *map(str, kwargs)])
    if "raised" in said:
        reason = " ".join(said["raised"].split())[:300]
        raise SgpoError(f"{FILE}: {path} does not load ({reason}{said['line']})")
    if "missing" in said:
        raise SgpoError(f"{NAME}={name}: {path} defines no such function")
    if "refuses" in said:
        raise SgpoError(
            f"{NAME}={name}: does not take what verl gives it ({said['refuses']})",
            f"it is called with {', '.join(GIVEN)} by name, and with reward_kwargs",
        )
    return f"{name} in {path}"


def _check_legacy(config: Mapping[str, Any]) -> None:
    """Scripts for verl before 0.9 set these; they still compose."""
    for key, value in _leaves({group: config.get(group) for group in LEGACY}):
        if value is not None:
            now = next((f"{MOVED[old]}{key[len(old) :]}" for old in MOVED if f"{key}.".startswith(f"{old}.")), None)
            raise SgpoError(
                f"{key}={value!r}: verl's trainer does not read it any more", f"write {now or f'reward.{key}'}={value}"
            )


def _leaves(node: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _check_source(path: str, name: str) -> None:
    """What its text shows, at once."""
    try:
        code = compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)
    except OSError as error:
        raise SgpoError(f"{FILE}: cannot read {path} ({error.strerror})") from None
    except (SyntaxError, ValueError) as error:
        raise SgpoError(f"{FILE}: {path} is not valid Python ({error})") from None
    if name not in code.co_names and ("*",) not in code.co_consts:
        raise SgpoError(f"{NAME}={name}: {path} defines no such function")


def _load(path: str, name: str, names: list[str]) -> dict[str, Any]:
    place = path if path.startswith("pkg://") else str(Path(path).resolve())
    command = [sys.executable, "-c", LOAD, place, name, *names]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise Doubt(
            f"{FILE}: {path} had not loaded after {PATIENCE:g} s, so nothing is known of it",
            "see to it that importing it is quick",
        ) from None
    lines = done.stdout.splitlines()
    if not lines:
        return {"raised": f"the process ended with code {done.returncode}", "line": ""}
    return json.loads(lines[-1])
