"""The documentation: the site builds without a warning, and what it names is there, all of it."""

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest
import typer
from profiles import make_profile
from test_config import leaves
from tiny import REPO

from sgpo_verl.cli import app
from sgpo_verl.config import load_settings
from sgpo_verl.methods.base import Outcome
from sgpo_verl.metrics import Ledger, StepTotals
from sgpo_verl.parts import PARTS
from sgpo_verl.plan import make_plan
from sgpo_verl.profile import FAILURE, SCHEMA, ProfileMetadata
from sgpo_verl.schedule import RunNumbers

DOCS = REPO / "docs"
PAGES = sorted(DOCS.glob("*.md"))
PROSE = [*PAGES, REPO / "README.md", REPO / "recipes" / "README.md"]
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)")
BLOCK = re.compile(r"^ *```bash\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    return folder


def shown(page) -> str:
    """Text of a built page."""
    return re.sub(r"<[^>]+>", "", page.read_text())


# --- the site ---------------------------------------------------------------------------------------------------------


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert {"index.html", "faq.html", "settings.html"} <= {page.name for page in pages}
    for page in pages:
        text = page.read_text()
        loaded = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?:[^\"]+)", text)
        assert not loaded, f"{page.name} loads {loaded}"


def test_every_file_that_a_page_links_to_is_there_in_the_repository_and_on_the_site(site):
    for page in PROSE:
        for target in LINK.findall(re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)):
            generated = target in ("settings.md", "cli.md")  # of the site only
            assert generated or (page.parent / target).exists(), f"{page.name}: {target}"
    for page in site.rglob("*.html"):
        for target in re.findall(r"<(?:a|img)[^>]+(?:href|src)=\"(?!\w+:|#)([^\"#]+)", page.read_text()):
            place = page.parent / target
            assert place.exists() or page.name == "404.html", f"{page.relative_to(site)}: {target}"


def test_every_setting_is_on_its_page_with_its_meaning(site):
    text = shown(site / "settings.html")
    for path, field in leaves().items():
        assert f"sgpo.{'.'.join(path)}" in text, path
        assert field.description, path
        words = field.description.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        assert words.split("; ")[0] in text, path


def test_every_command_and_option_is_on_its_page(site):
    text = shown(site / "cli.html")
    for path, options in commands().items():
        assert path in text
        assert all(option in text for option in options), path


# --- what the pages name ----------------------------------------------------------------------------------------------


def commands() -> dict[str, set[str]]:
    """ "sgpo profile merge" -> its options."""

    def walk(command, path: str) -> Iterator[tuple[str, set[str]]]:
        if not hasattr(command, "commands"):
            yield path, {name for parameter in command.params for name in parameter.opts if name.startswith("-")}
            return
        for name, inner in command.commands.items():
            yield from walk(inner, f"{path} {name}")

    return dict(walk(typer.main.get_command(app), "sgpo"))


HYDRA = {"--config-dir", "--config-name", "--config-path"}


def said_commands(text: str) -> Iterator[list[str]]:
    """Every ``sgpo ...`` of the code blocks of a page, in words, without comments."""
    for block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if match := re.match(r" *(?:\w+=\S+; )?(?:\S*/)?sgpo( .*|$)", line):
                yield shlex.split(match[1], comments=True)


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(REPO)))
def test_a_command_in_a_page_exists_with_its_options(page):
    known = commands()
    for words in said_commands(page.read_text()):
        path = next((f"sgpo {' '.join(words[:n])}" for n in (2, 1) if f"sgpo {' '.join(words[:n])}" in known), None)
        if path is None and words[0] == "profile":
            path = "sgpo profile run"
        assert path is not None or words == ["--help"], f"sgpo {' '.join(words)}"
        given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert given <= known.get(path, set()) | HYDRA | {"--help"}, f"{path}: {given}"


def test_the_check_of_commands_can_fail():
    said = list(
        said_commands("```bash\nsgpo plan x.parquet $ARGS --plot y.png  # --no\nX=1; sgpo nothing --at-all\n```")
    )
    assert said == [["plan", "x.parquet", "$ARGS", "--plot", "y.png"], ["nothing", "--at-all"]]
    assert "sgpo nothing" not in commands()


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(REPO)))
def test_a_setting_in_a_page_exists(page):
    groups = {path[:n] for path in leaves() for n in range(1, len(path))}
    for word in re.findall(r"(?<![\w/.])sgpo\.([a-z_]+(?:\.[a-z_]+)*)", page.read_text()):
        path = tuple(word.split("."))
        inside_kwargs = path[:3] == ("curriculum", "custom", "kwargs")
        assert path in leaves() or path in groups or inside_kwargs, f"sgpo.{word}"


def logged() -> set[str]:
    """The keys of every metric, without ``sgpo/``: of a step of each method, and what the trainer adds."""
    totals = StepTotals()
    totals.outcomes = [Outcome(0, 2, 1, 0.5)]
    keys = set(totals.metrics()) | set(Ledger().metrics())
    numbers = RunNumbers(train_batch_size=4, rollout_n=8, mini_batch_size=4, total_training_steps=1)
    for method in PARTS:
        chosen, posterior = make_plan(
            make_profile([3, 2, 1, 8] * 4), load_settings({"method": method}), numbers
        ).plan.start()
        keys |= set(chosen.metrics()) | set(posterior.metrics() if posterior is not None else {})
    for file in (REPO / "sgpo_verl" / "binding").glob("trainer*.py"):
        texts = {node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)}
        keys |= {text for text in texts if isinstance(text, str) and re.fullmatch(r"[a-z]+/[a-z_]+", text)}
    return keys


def test_the_page_of_metrics_names_every_metric_and_no_other():
    rows = re.findall(r"^\| (`[^|]+) \|", (DOCS / "metrics.md").read_text(), re.MULTILINE)
    documented = {key for row in rows for key in re.findall(r"`([^`]+)`", row)}
    assert documented == logged() | {"custom/<name>"}


def test_the_page_of_the_profile_names_every_column_with_its_type_and_every_field():
    text = (DOCS / "profile_format.md").read_text()
    columns = dict(re.findall(r"^\| `(\w+)` \| ([a-z]+\d*) \|", text, re.MULTILINE))
    assert columns == {field.name: str(field.type).replace("float", "float32") for field in [*SCHEMA, FAILURE]}
    rows = re.findall(r"^\| (`[^|]+`) \| [^|]+ \| (yes|no)", text, re.MULTILINE)
    agree = {name: said for cell, said in rows for name in re.findall(r"`(\w+)`", cell)}
    fields = ProfileMetadata.__dataclass_fields__
    assert agree == {name: "yes" if name in ProfileMetadata.IDENTITY else "no" for name in fields}
