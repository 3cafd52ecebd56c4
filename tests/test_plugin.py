"""The first question of every plugin: does the host see it, in every process, and nothing else of it?"""

import json
import os
import subprocess
import sys

import pytest
from tiny import REPO

REPORT = """
import json, sys
import verl
from verl.plugin.platform.platform_manager import PlatformRegistry
ours = {"sgpo_verl", "sgpo_verl.binding", "sgpo_verl.errors"}
ours |= {f"sgpo_verl.binding.{name}" for name in ("register", "cpu", "verl_version")}
heavy = [m for m in sys.modules if m.startswith(("sgpo_verl", "verl.trainer")) and m not in ours]
print(json.dumps({"plugin": "sgpo_verl.binding.register" in sys.modules, "heavy": heavy,
                  "platforms": list(PlatformRegistry.registered_names())}))
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if k != "VERL_PLATFORM"}
    return subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, cwd="/"
    )


def last_json(process: subprocess.CompletedProcess) -> dict:
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout.splitlines()[-1])


def test_importing_verl_loads_the_plugin_but_not_the_trainer():
    seen = last_json(python(REPORT))
    assert seen["plugin"]
    assert seen["heavy"] == []


def test_the_cpu_platform_exists_only_where_it_is_asked_for():
    assert "cpu" not in last_json(python(REPORT))["platforms"]
    assert "cpu" in last_json(python(REPORT, VERL_PLATFORM="cpu"))["platforms"]


def test_verl_finds_trainer_and_estimator_by_name_and_keeps_its_own():
    code = """
import json
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
names = {n: get_trainer_cls(n).__module__ for n in ("sync", "colocate_async", "sgpo_sync")}
names |= {n: get_adv_estimator_fn(n).__module__ for n in ("grpo", "sgpo")}
print(json.dumps(names))
"""
    assert last_json(python(code, VERL_PLATFORM="cpu")) == {
        "sync": "verl.trainer.ppo.v1.trainer_sync",
        "colocate_async": "verl.trainer.ppo.v1.trainer_colocate_async",
        "sgpo_sync": "sgpo_verl.binding.trainer",
        "grpo": "verl.trainer.ppo.core_algos",
        "sgpo": "sgpo_verl.binding.estimator",
    }


@pytest.fixture
def broken_plugin(tmp_path):
    """A directory to put first on the path, in which the module that our entry point names raises on import."""
    package = tmp_path / "sgpo_verl" / "binding"
    package.mkdir(parents=True)
    for file in [f for f in (REPO / "sgpo_verl").rglob("*") if f.suffix in (".py", ".yaml")]:
        target = tmp_path / "sgpo_verl" / file.relative_to(REPO / "sgpo_verl")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.read_text())
    (package / "register.py").write_text("raise RuntimeError('the disk with the moon on it is gone')\n")
    return tmp_path


def test_doctor_shows_the_exception_of_a_plugin_that_failed_to_load(broken_plugin):
    code = "import sys; sys.argv = ['sgpo', 'doctor']; from sgpo_verl.cli import main; main()"
    process = python(code, VERL_PLATFORM="cpu", PYTHONPATH=str(broken_plugin))
    assert process.returncode == 1
    lines = process.stdout.splitlines()
    assert any(line.startswith("✗ FAIL plugin") for line in lines)
    for check in ("names in verl", "trainer modes"):
        assert any(line.startswith(f"– skip {check:<17} the plugin has to load first") for line in lines)
    said = " ".join(process.stdout.split())
    assert "raised RuntimeError: the disk with the moon on it is gone" in said
    assert "register.py, line 1)" in said
    assert len(lines) < 45  # not a wall of text


def test_an_unsupported_verl_is_said_once_with_the_supported_range_and_registers_nothing(tmp_path):
    info = tmp_path / "verl-0.10.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: verl\nVersion: 0.10.0\n")
    code = """
import json, subprocess, sys, verl
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY
child = subprocess.run([sys.executable, "-c", "import verl"], capture_output=True, text=True)
print(json.dumps({"registered": "sgpo" in ADV_ESTIMATOR_REGISTRY, "again": "sgpo:" in child.stderr}))
"""
    process = python(code, PYTHONPATH=str(tmp_path))
    assert last_json(process) == {"registered": False, "again": False}
    assert "sgpo: verl 0.10.0 is not supported: pip install 'verl>=0.9.1,<0.10'" in process.stderr


def test_doctor_is_content_with_this_installation():
    code = "import sys; sys.argv = ['sgpo', 'doctor']; from sgpo_verl.cli import main; main()"
    process = python(code, VERL_PLATFORM="cpu")
    assert process.returncode == 0, process.stdout
    assert "FAIL" not in process.stdout
    assert "✓ ok   trainer modes     sgpo_sync, sgpo_colocate_async, sgpo_separate_async" in process.stdout
    assert "✓ ok   seams             all " in process.stdout
