"""What we use of verl, and whether a verl still has it: its source is read as ``ast``, and nothing of it is imported.

``seams.yaml`` lists it, module by module, one line each:

    register_trainer(name)                  a function, and exactly these parameters
    create_rl_dataset(data_paths, ...)      these among others, which all have defaults
    PPOTrainer.fit(self, agent_loop_manager)
    PPOTrainer.actor_rollout_wg             an attribute, method or field of the class, or of one that it inherits from
    PPOTrainer._step_once: on_sample_end    names or texts in the body of a function or class

and, under ``keys``, the keys of verl's ``ppo_trainer`` that we read or set. ``tests/test_seams.py`` holds the list against
what ``binding/`` uses. ``python -m sgpo_verl.seams [PATH]`` (or ``sgpo doctor --seams PATH``) holds a verl against the list.
"""

import difflib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sgpo_verl.errors import SgpoError
from sgpo_verl.sources import Source, mentions, parameters_of

LIST = Path(__file__).with_name("seams.yaml")
KEYS = "keys"
_LINE = re.compile(r"(?P<name>[\w.]+)(?:\((?P<parameters>[^)]*)\))?(?:: (?P<words>.+))?")


def listed() -> dict[str, list[str]]:
    """The list: module -> its lines."""
    return yaml.safe_load(LIST.read_text())


def split(line: str) -> tuple[str, list[str] | None, list[str]]:
    """ "A.f(x, y): word" -> ("A.f", ["x", "y"], ["word"]); None without parentheses."""
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(f"{LIST.name}: {line!r} is no seam")
    given, words = match["parameters"], match["words"]
    names = None if given is None else [name.strip() for name in given.split(",") if name.strip()]
    return match["name"], names, [word.strip() for word in words.split(",")] if words else []


def folders(verl: Path | None = None) -> dict[str, Path]:
    """Where the packages of the list are. verl: its package folder, or a checkout; None: the installed one.

    Raises SgpoError if one is not there.
    """
    found = {}
    for package in sorted({module.partition(".")[0] for module in listed()} - {KEYS}):
        if package == "verl" and verl is not None:
            found[package] = _package_in(verl)
            continue
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise SgpoError(f"{package} is not installed here", "pip install 'sgpo-verl[verl]'")
        found[package] = Path(spec.submodule_search_locations[0])
    return found


def _package_in(path: Path) -> Path:
    for folder in (path / "verl", path):
        if (folder / "trainer" / "config" / "ppo_trainer.yaml").is_file():
            return folder
    raise SgpoError(f"--seams {path}: no verl there", "name a checkout of verl, or the folder of its package")


def check(verl: Path | None = None) -> tuple[int, list[str]]:
    """(seams looked at, those that are not as listed, in words)."""
    places = folders(verl)
    source, lines = Source(places), listed()
    problems = list(_missing_keys(places["verl"] / "trainer" / "config", lines[KEYS]))
    for module, seams in lines.items():
        if module != KEYS:
            problems += [f"{module}: {problem}" for seam in seams if (problem := problem_of(source, module, seam))]
    return sum(map(len, lines.values())), problems


def problem_of(source: Source, module: str, line: str) -> str | None:
    """What is wrong with one line of the list, None if nothing is."""
    try:
        return _problem_of(source, module, line)
    except SyntaxError as error:  # of a verl for a newer Python
        return f"it, or what it imports from, is no Python {sys.version_info[0]}.{sys.version_info[1]} ({error})"


def _problem_of(source: Source, module: str, line: str) -> str | None:
    name, wanted, words = split(line)
    *owner, last = name.split(".")
    if source.module(module) is None:
        return "there is no such module"
    if owner and source.find(module, owner[0]) is None:
        return f"{owner[0]} is gone{_close(owner[0], source.names(module))}"
    found = source.member(module, owner[0], last) if owner else source.find(module, last)
    if found is None:
        known = source.members(module, owner[0]) if owner else source.names(module)
        return f"{name} is gone{_close(last, known)}"
    if wanted is not None and (said := _differing(name, wanted, found.node)):
        return said
    if missing := [word for word in words if not mentions(found.node, word)]:
        return f"{name} says nothing of {', '.join(missing)} any more"
    return None


def _differing(name: str, wanted: list[str], node: Any) -> str | None:
    """Whether a function's parameters are others than ``wanted``."""
    parameters = parameters_of(node)
    if parameters is None:
        return f"{name} is no function any more"
    names, required = parameters
    open_ended = "..." in wanted
    asked = [name for name in wanted if name != "..."]
    if not open_ended and names != asked:
        return f"{name} takes ({', '.join(names)}), not ({', '.join(asked)})"
    lacking = [name for name in asked if name not in names] if "**kwargs" not in names else []
    new = [name for name in required if name not in asked and name != "self"]
    if open_ended and (lacking or new):
        return f"{name} takes ({', '.join(names)}), we give it ({', '.join(asked)})"
    return None


def _close(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (is it {close[0]} now?)" if close else ""


def _missing_keys(folder: Path, keys: list[str]) -> Iterator[str]:
    """Keys of the list that verl's composed configuration does not have."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(config_dir=str(folder.resolve()), version_base=None):
            config = OmegaConf.to_container(compose("ppo_trainer"), resolve=False)
    except (HydraException, OmegaConfBaseException) as error:
        yield f"config: verl's ppo_trainer does not compose ({' '.join(str(error).split())[:200]})"
        return
    for key in keys:
        node: Any = config
        for part in key.split("."):
            node = node.get(part, _NOTHING) if isinstance(node, dict) else _NOTHING
        if node is _NOTHING:
            yield f"config: {key} is not in verl's ppo_trainer"


_NOTHING = object()


def main(arguments: list[str]) -> int:
    """``python -m sgpo_verl.seams [PATH]``: 0 if all is as listed, 1 if not, 2 for no verl there."""
    try:
        count, problems = check(Path(arguments[0]) if arguments else None)
    except SgpoError as error:
        print(f"sgpo: {error}", file=sys.stderr)
        return 2
    for problem in problems:
        print(problem)
    print(f"{count - len(problems)} of {count} seams are where the plugin expects them")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
