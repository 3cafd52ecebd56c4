"""The list of verl's seams covers what binding/ uses, and the check finds a verl that differs."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tiny import REPO

from sgpo_verl import seams
from sgpo_verl.sources import Found, Source

BINDING = sorted((REPO / "sgpo_verl" / "binding").glob("*.py"))
OURS = {"sgpo_verl": REPO / "sgpo_verl"}


@pytest.fixture(scope="module")
def source() -> Source:
    """verl, TransferQueue and ourselves."""
    return Source(seams.folders() | OURS)


@pytest.fixture(scope="module")
def places(source) -> set[tuple[str, str, str]]:
    """(module, class, name) of every method and attribute on the list: the module where it is really set."""
    found = set()
    for module, lines in seams.listed().items():
        for line in lines if module != seams.KEYS else ():
            *owner, last = seams.split(line)[0].split(".")
            if owner and (place := source.member(module, owner[0], last)):
                found.add((place.module, owner[0], last))
    return found


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, name) of every ``from verl... import`` and ``from transfer_queue import``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ("verl", "transfer_queue"):
            yield from ((node.module, alias.name) for alias in node.names)


def uses(source: Source) -> Iterator[tuple[list[Found], str, str]]:
    """(our classes, module and name of verl's class that they inherit from directly) for every class of binding/."""
    for file in BINDING:
        module = f"sgpo_verl.binding.{file.stem}"
        for name in source.names(module):
            lineage = list(source.lineage(module, name))
            ours = [place for place in lineage if place.module.startswith("sgpo_verl")]
            for place in lineage if ours else ():
                if not place.module.startswith("sgpo_verl"):
                    yield ours, place.module, place.node.name


def test_every_import_from_verl_is_on_the_list():
    listed = {
        (module, seams.split(line)[0].partition(".")[0])
        for module, lines in seams.listed().items()
        for line in lines
        if module != seams.KEYS
    }
    used = {pair for file in BINDING for pair in imports(ast.parse(file.read_text()))}
    submodules = {pair for pair in used if ".".join(pair) in seams.listed()}
    assert used - submodules - listed == set()
    assert len(used) > 30


def test_every_override_is_on_the_list(source, places):
    overrides = {
        (module, base, method.name)
        for ours, module, base in uses(source)
        for place in ours
        for method in place.node.body
        if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert missing(source, overrides, places) == []


def missing(source: Source, used: set[tuple[str, str, str]], places: set) -> list[tuple[str, str, str]]:
    """Members of verl's classes (what it does not have is ours alone) that are not on the list."""
    set_where = {use: place.module for use in used if (place := direct(source, *use))}
    assert len(set_where) > 25
    return sorted(use for use, module in set_where.items() if (module, *use[1:]) not in places)


def direct(source: Source, module: str, base: str, name: str) -> Found | None:
    """A member that this very class sets: those that it inherits belong to the class they come from."""
    place = source.member(module, base, name)
    node = source.find(module, base).node
    return place if place and any(place.node is inner for inner in ast.walk(node)) else None


def test_every_attribute_of_verls_classes_that_we_read_is_on_the_list(source, places):
    read = {
        (module, base, use.attr)
        for ours, module, base in uses(source)
        for place in ours
        for use in ast.walk(place.node)
        if isinstance(use, ast.Attribute) and isinstance(use.value, ast.Name) and use.value.id == "self"
    }
    assert missing(source, read, places) == []


VERLS_KEY = re.compile(r"(data|actor_rollout_ref|algorithm|trainer|reward|critic|ray_kwargs)(\.[a-z_]\w*)+")


def keys_read(tree: ast.AST, texts: dict[str, str] | None = None) -> set[str]:
    """Configuration keys in a file: ``config.a.b``, ``self.config.a.b``, ``config["a"]["b"]`` and ``group_at(config, "a")``,
    also through a local name; and texts like them. texts: constants of the modules that it imports from."""
    texts = {**(texts or {}), **constants(tree)}
    found = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and VERLS_KEY.fullmatch(node.value)
    }
    for function in [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]:
        known: dict[str, list[str]] = {"config": []}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign):
                target, value = node.targets[0], node.value
                both = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
                for name, path in zip(target.elts, value.elts, strict=True) if both else [(target, value)]:
                    if isinstance(name, ast.Name) and (parts := path_of(path, known, texts)):
                        known[name.id] = parts
        reads = [
            n for n in ast.walk(function) if isinstance(n, ast.Attribute | ast.Call | ast.Subscript | ast.JoinedStr)
        ]
        paths = [path_of(node, known, texts) for node in reads]
        found |= {".".join(parts) for parts in paths if parts}
    return {key for key in found if VERLS_KEY.fullmatch(key) and not key.endswith(".get")}


def constants(tree: ast.AST) -> dict[str, str]:
    """Texts that a module gives a name: ``ACTOR = "actor_rollout_ref.actor"``, ``FIRST, SECOND = "a", "b"``."""
    found: dict[str, str] = {}
    for node in getattr(tree, "body", []):
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
            both = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
            for name, text in zip(target.elts, value.elts, strict=True) if both else [(target, value)]:
                if isinstance(name, ast.Name) and (told := text_of(text, found)):
                    found[name.id] = told
    return found


def text_of(node: ast.AST, texts: dict[str, str]) -> str | None:
    """A text, a named one, or an f-string of these; None for any other."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Name):
        return texts.get(node.id)
    if isinstance(node, ast.JoinedStr):
        parts = [text_of(v.value if isinstance(v, ast.FormattedValue) else v, texts) for v in node.values]
        return None if None in parts else "".join(parts)
    return None


def path_of(node: ast.AST, known: dict[str, list[str]], texts: dict[str, str]) -> list[str] | None:
    """["data", "train_files"] for ``config.data.train_files`` and ``group_at(config, "data").get("train_files")``."""
    parts: list[str] = []
    if isinstance(node, ast.JoinedStr):
        return (text_of(node, texts) or "").split(".")
    while not isinstance(node, ast.Name):
        asked = (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("group_at", "value_at")
        )
        if asked and isinstance(node, ast.Call):
            key = text_of(node.args[1], texts)
            return [*key.split("."), *parts[::-1]] if key else None
        if isinstance(node, ast.Subscript):
            if (key := text_of(node.slice, texts)) is None:
                return None
            parts.append(key)
            node = node.value
            continue
        if isinstance(node, ast.Attribute):
            if node.attr == "config" and isinstance(node.value, ast.Name):
                return parts[::-1]
            parts.append(node.attr)
            node = node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            if not node.args or not isinstance(node.args[0], ast.Constant):
                return None
            parts.append(str(node.args[0].value))
            node = node.func.value
        else:
            return None
    return [*known[node.id], *parts[::-1]] if node.id in known else None


def test_every_key_of_verls_configuration_that_we_read_is_on_the_list():
    core = REPO / "sgpo_verl"
    files = [*BINDING, core / "run_config.py", core / "provenance.py", *sorted((core / "checks").glob("*.py"))]
    listed = set(seams.listed()[seams.KEYS])
    trees = [ast.parse(file.read_text()) for file in files]
    shared = {name: text for tree in trees for name, text in constants(tree).items() if name in ("ACTOR", "ROLLOUT")}
    read = set().union(*(keys_read(tree, shared) for tree in trees))
    read = {key for key in read if not any(key == k or key.startswith(f"{k}.") for k in ELSEWHERE)}
    assert len(read) > 60
    covered = {
        key for key in read if any(key == k or k.startswith(f"{key}.") or key.startswith(f"{k}.") for k in listed)
    }
    assert read - covered == set()


ELSEWHERE = {  # not in verl's YAML files: optional, and listed where verl reads them; and a file's name
    "actor_rollout_ref.actor.megatron",  # there with model_engine=megatron
    "actor_rollout_ref.rollout.agent.agent_loop_manager_class",
    "algorithm.filter_groups",
    "data.pt",
    "reward.custom_reward_function.reward_kwargs",
    "reward.reward_kwargs",
}


def test_keys_are_found_however_they_are_read():
    code = """
ACTOR = "actor_rollout_ref.actor"
def g(config):
    actor = group_at(config, ACTOR)
    value_at(config, f"{ACTOR}.ppo_epochs"), f"{SHARED}.top_k", config["data"]["seed"]
    return actor.get("strategy"), group_at(config, "critic.optim").get("lr"), value_at(config, f"{ACTOR}.{actor}")
def f(self, config):
    rollout, mode = config.actor_rollout_ref.rollout, config.trainer.get("resume_mode")
    return rollout.n, self.config.algorithm.get("use_kl_in_reward", False), at(config, "data.train_files")
"""
    wanted = {"actor_rollout_ref.rollout.n", "trainer.resume_mode", "algorithm.use_kl_in_reward", "data.train_files"}
    wanted |= {"actor_rollout_ref.actor.ppo_epochs", "actor_rollout_ref.actor.strategy", "critic.optim.lr", "data.seed"}
    wanted |= {"actor_rollout_ref.rollout.top_k"}
    assert keys_read(ast.parse(code), {"SHARED": "actor_rollout_ref.rollout"}) >= wanted


def test_this_verl_has_every_seam():
    count, problems = seams.check()
    assert problems == []
    assert count > 200


RENAMED = [  # file, text in it, in its place, what the check says
    (
        "trainer/ppo/v1/trainer_base.py",
        "def _step_once(self, metrics: dict, timing_raw: dict, sample_batch_size: int)",
        "def _step_single(self, metrics: dict, timing_raw: dict, sample_batch_size: int)",
        "verl.trainer.ppo.v1.trainer_base: PPOTrainer._step_once is gone (is it _step_single now?)",
    ),
    (
        "trainer/ppo/v1/agent_loop_tq.py",
        '"__rollout_n__"',
        '"__n__"',
        "verl.trainer.ppo.v1.agent_loop_tq: AgentLoopWorkerTQ._run_prompt says nothing of __rollout_n__ any more",
    ),
    (
        "trainer/ppo/v1/replay_buffer.py",
        "def _clear_groups(self, partition_id: str, uids",
        "def _clear_groups(self, partition_id: str, reason: str, uids",
        "verl.trainer.ppo.v1.replay_buffer: ReplayBuffer._clear_groups takes (self, partition_id, reason, uids), "
        "not (self, partition_id, uids)",
    ),
    (
        "trainer/ppo/v1/trainer_base.py",
        "self.steps_per_epoch = ",
        "self.epoch_steps = ",
        "verl.trainer.ppo.v1.trainer_base: PPOTrainer.steps_per_epoch is gone",
    ),
    (
        "utils/fs.py",
        "def copy_to_local(",
        "def fetch(",
        "verl.utils.fs: copy_to_local is gone",
    ),
    (
        "trainer/ppo/utils.py",
        "def need_critic(config",
        "def need_critic(trainer_mode, config",
        "verl.trainer.ppo.utils: need_critic takes (trainer_mode, config), not (config)",
    ),
    (
        "trainer/config/ppo_trainer.yaml",
        "  total_epochs:",
        "  epochs:",
        "config: trainer.total_epochs is not in verl's ppo_trainer",
    ),
]


def test_a_verl_with_seams_renamed_is_found_out_by_the_command_for_ci(tmp_path):
    verl = tmp_path / "verl"
    unused = shutil.ignore_patterns("__pycache__", "*.sh", "models", "tools")
    shutil.copytree(seams.folders()["verl"], verl, ignore=unused)
    for file, old, new, _ in RENAMED:
        text = (verl / file).read_text()
        assert old in text, file
        (verl / file).write_text(text.replace(old, new))
    (verl / "trainer" / "ppo" / "padding_utils.py").rename(verl / "trainer" / "ppo" / "padding.py")
    script = [sys.executable, "-m", "sgpo_verl.seams"]
    done = subprocess.run([*script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    *problems, last = done.stdout.splitlines()
    moved = "verl.trainer.ppo.padding_utils: there is no such module"
    for message in (moved, *(message for *_, message in RENAMED)):
        assert any(problem.startswith(message) for problem in problems), message
    assert last.endswith("seams are where the plugin expects them")


def test_no_verl_is_bad_input():
    done = subprocess.run([sys.executable, "-m", "sgpo_verl.seams", "/nowhere"], capture_output=True, text=True)
    assert done.returncode == 2
    assert (
        done.stderr == "sgpo: --seams /nowhere: no verl there; name a checkout of verl, or the folder of its package\n"
    )


def test_a_verl_that_does_not_compose_or_is_for_a_newer_python_has_its_seams_listed(tmp_path):
    verl = tmp_path / "verl"
    shutil.copytree(
        seams.folders()["verl"], verl, ignore=shutil.ignore_patterns("__pycache__", "*.sh", "models", "tools")
    )
    (verl / "trainer" / "config" / "reward" / "reward.yaml").unlink()
    (verl / "utils" / "fs.py").write_text("def copy_to_local[T = (:\n")
    _, problems = seams.check(tmp_path)
    (config,) = [problem for problem in problems if problem.startswith("config: ")]
    assert config.startswith("config: verl's ppo_trainer does not compose (")
    assert any(re.match(r"verl\.utils\.fs: it, or what it imports from, is no Python 3\.", line) for line in problems)
