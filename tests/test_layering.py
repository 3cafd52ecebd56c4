"""The core needs no verl: importing any of its modules loads none of the heavy ones. And the check can fail."""

import json
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
HEAVY = ["ray", "tensordict", "torch", "transformers", "verl", "vllm"]
TRAINING = {"sgpo_verl.demo.base"}  # besides sgpo_verl.binding, the code that is meant to load them

# Import the modules named in argv[1] one after another; print {module: heavy modules that it was the first to load}.
IMPORT = """
import importlib, json, sys
modules, heavy = map(json.loads, sys.argv[1:])
loaded = {}
for name in modules:
    before = set(sys.modules)
    importlib.import_module(name)
    loaded[name] = [h for h in heavy if h in sys.modules and h not in before]
print(json.dumps({name: found for name, found in loaded.items() if found}))
"""


def heavy_imports(modules: list[str], folder: Path = REPO, heavy: list[str] = HEAVY) -> dict[str, list[str]]:
    command = [sys.executable, "-c", IMPORT, json.dumps(modules), json.dumps(heavy)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def modules_of(package: Path) -> list[str]:
    """Dotted names of every module in a package, itself included."""
    files = (file.relative_to(package.parent).with_suffix("") for file in sorted(package.rglob("*.py")))
    return [".".join(file.parts).removesuffix(".__init__") for file in files]


def test_the_core_loads_nothing_heavy():
    everything = modules_of(REPO / "sgpo_verl")
    core = [m for m in everything if not m.startswith("sgpo_verl.binding") and m not in TRAINING]
    assert {"sgpo_verl", "sgpo_verl.methods.paper", "sgpo_verl.plan", "sgpo_verl.report.page"} <= set(core)
    assert set(everything) >= TRAINING
    assert heavy_imports(["hydra_plugins.sgpo_search_path", *core]) == {}


def test_the_command_line_loads_what_it_needs_only_when_it_runs():
    slow = ["hydra", "matplotlib", "numpy", "omegaconf", "pandas", "pyarrow", "pydantic", "rich.table"]
    assert heavy_imports(["sgpo_verl.cli"], heavy=HEAVY + slow) == {}


def test_a_module_that_does_load_torch_is_caught(tmp_path):
    (tmp_path / "torch.py").write_text("")  # found first: quicker than the real one, and the same to the check
    (tmp_path / "vllm.py").write_text("")
    (tmp_path / "leaky").mkdir()
    for name, source in {
        "__init__": "",
        "a_light": "def later():\n    import torch",
        "b_direct": "import torch",
        "c_indirect": "from leaky.d_other import name",
        "d_other": "from vllm import __name__ as name",
    }.items():
        (tmp_path / "leaky" / f"{name}.py").write_text(source)
    assert modules_of(tmp_path / "leaky")[:3] == ["leaky", "leaky.a_light", "leaky.b_direct"]
    found = heavy_imports(modules_of(tmp_path / "leaky"), tmp_path)
    assert found == {"leaky.b_direct": ["torch"], "leaky.c_indirect": ["vllm"]}
