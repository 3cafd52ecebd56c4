"""The hook of mkdocs.yml: pages made from the code, and a page for every file of the repository that a page links to.

In the repository a page links to ``../sgpo_verl/parts.py``. On the site that is a page of its own, with the file's text: so
no link leaves the site, wherever it is read.
"""

import posixpath
import re
from itertools import pairwise
from pathlib import Path

import cli_page  # this folder is on the path while mkdocs loads its hooks
import settings_page
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

REPO = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")
CODE = re.compile(r"^(````?)\w.*?^\1$|^```\n.*?^```$", re.DOTALL | re.MULTILINE)  # blocks of it
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".sh": "bash", ".toml": "toml"}
_origin: dict[str, str] = {}  # page of the site -> the file of the repository that it is made from


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, text in (("settings.md", settings_page.page()), ("cli.md", cli_page.page())):
        files.append(File.generated(config, name, content=text))
    pages = [file.src_uri for file in files.documentation_pages()]
    _origin.clear()
    _origin.update({name: f"docs/{name}" for name in pages})
    waiting = [(f"docs/{file.src_uri}", file.content_string) for file in files.documentation_pages()]
    while waiting:
        origin, text = waiting.pop()
        for target in sorted(set(map(str, LINK.findall(_without_code(text))))):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
            name = page_of(path)
            if name in _origin or not name.startswith("source/"):
                continue
            if not (REPO / path).exists():
                raise PluginError(f"{origin}: links to {target}, which is not there")
            _origin[name] = path
            content = _as_page(path)
            files.append(File.generated(config, name, content=content, inclusion=InclusionLevel.NOT_IN_NAV))
            waiting.append((path, content))
    return files


def page_of(path: str) -> str:
    """Where a file of the repository is on the site."""
    inside = path.removeprefix("docs/")
    if path.startswith("docs/") and not inside.startswith(("gen/", "benchmarks/")):
        return inside
    return f"source/{path}" if path.endswith(".md") else f"source/{path}.md"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = page.file.src_uri
    folder = posixpath.dirname(_origin[here])

    def moved(match: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[1]))
        return posixpath.relpath(page_of(path), posixpath.dirname(here) or ".")

    ends = [0, *(end for match in CODE.finditer(markdown) for end in match.span()), len(markdown)]
    parts = [markdown[a:b] for a, b in pairwise(ends)]
    return "".join(part if i % 2 else LINK.sub(moved, part) for i, part in enumerate(parts))


def _without_code(text: str) -> str:
    return CODE.sub("", text)


def _as_page(path: str) -> str:
    head = "---\nsearch:\n  exclude: true\n---\n"
    file = REPO / path
    if file.is_dir():
        names = sorted(child.name for child in file.iterdir() if child.is_file())
        return f"{head}# {path}\n\n" + "".join(f"- [{name}]({file.name}/{name})\n" for name in names)
    if file.suffix == ".md":
        return head + file.read_text()
    language = LANGUAGES.get(file.suffix, "text")
    return f'{head}# {path}\n\n````{language} linenums="1"\n{file.read_text().rstrip()}\n````\n'
