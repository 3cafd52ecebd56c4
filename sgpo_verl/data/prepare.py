"""Read a public data set, keep every question once, write verl's rows.

    {"data_source": "openai/gsm8k", "prompt": [{"role": "user", "content": "Natalia sold ..."}], "ability": "math",
     "reward_model": {"style": "rule", "ground_truth": "72"}, "extra_info": {"split": "train", "index": 0}}

``extra_info.index`` is the row's place in the public file, so a prompt's identity (``data_source:index``) is the same
whatever else is done to the data. All files have one schema: verl can train on several of them together.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgpo_verl.data.sources import SOURCES, Question, Source
from sgpo_verl.errors import SgpoError

FILE_KINDS = {".parquet": "parquet", ".json": "json", ".jsonl": "json"}


@dataclass(frozen=True)
class Kept:
    """Questions by their row, and why the other rows are not among them."""

    questions: dict[int, Question]
    rows: int
    repeated: int
    contradicted: int
    unanswered: int

    def __str__(self) -> str:
        left_out = {
            "repeat an earlier one": self.repeated,
            "ask a question that has two answers here": self.contradicted,
            "have no answer": self.unanswered,
        }
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items() if count)
        return f"{len(self.questions):,} prompts of {self.rows:,} rows" + (f" ({reasons})" if reasons else "")


def run(name: str, origin: str | None, folder: Path) -> None:
    """Write the files of the data set ``name`` to ``folder``. origin: another hub name, folder or file to read it from.

    Raises SgpoError for a name that is not known, data that is something else, and a folder that cannot be written.
    """
    if name not in SOURCES:
        raise SgpoError(f"sgpo data {name}: no such data set; known are {', '.join(SOURCES)}")
    source = SOURCES[name]
    origin = origin or source.hub
    with _writing(folder):  # before a download
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    splits = read(origin, source)
    for split, file in source.files.items():
        kept = select(splits[split], source, f"{origin}, split {split}")
        with _writing(folder):
            write(kept, source.data_source, Path(file).stem, folder / file)
        print(f"{folder / file}: {kept}")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Raises SgpoError for what the file system refuses."""
    try:
        yield
    except OSError as error:
        raise SgpoError(
            f"sgpo data -o {folder}: cannot be written ({error.strerror or error}): name another folder"
        ) from None


def read(origin: str, source: Source) -> dict[str, Iterator[dict[str, Any]]]:
    """{split: rows} for the splits that are written. A file is all of the only split that is wanted."""
    try:
        import datasets
    except ImportError:
        raise SgpoError("sgpo data: needs the datasets library, which comes with verl: pip install datasets") from None
    datasets.disable_progress_bars()
    path = Path(origin).expanduser()
    try:
        if path.is_file():
            loaded = _read_file(path, source)
        else:
            names = datasets.get_dataset_config_names(origin)
            loaded = datasets.load_dataset(origin, source.config if source.config in names else None)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        way_out = (
            f"it must be {source.hub} as it is published"
            if path.exists()
            else "download it where there is a network, and name the file or folder with --from"
        )
        raise SgpoError(f"sgpo data: cannot read {origin} ({reason}): {way_out}") from None
    for split in source.files:
        if split not in loaded:
            raise SgpoError(f"{origin}: has no split {split!r}, only {', '.join(map(str, loaded))}")
        _check_columns(loaded[split].column_names, source, f"{origin}, split {split}")
    return {split: _rows(loaded[split].select_columns(list(source.columns))) for split in source.files}


def _rows(dataset: Any) -> Iterator[dict[str, Any]]:
    """A thousand at a time: DAPO-Math-17k is published with 1.8 million."""
    for batch in dataset.with_format("arrow").iter(1000):
        yield from batch.to_pylist()


def _read_file(path: Path, source: Source) -> dict[str, Any]:
    import datasets

    if path.suffix not in FILE_KINDS:
        raise SgpoError(f"--from {path}: none of {', '.join(FILE_KINDS)}")
    if len(source.files) > 1:
        raise SgpoError(
            f"--from {path}: is one file, this data set has the splits {', '.join(source.files)}: name the folder"
        )
    split = next(iter(source.files))
    return {split: datasets.load_dataset(FILE_KINDS[path.suffix], data_files=str(path), split="train")}


def _check_columns(columns: Iterable[str], source: Source, place: str) -> None:
    missing = [column for column in source.columns if column not in columns]
    if missing:
        raise SgpoError(
            f"{place}: has no column {', '.join(missing)}, only {', '.join(columns)}: is it {source.hub}, or a copy of it?"
        )


def select(rows: Iterable[Mapping[str, Any]], source: Source, place: str) -> Kept:
    """Every question once. One that the rows answer in two ways is left out, for who knows which is right."""
    first: dict[str, int] = {}  # the row in which a question is asked first
    questions: dict[int, Question] = {}
    times: dict[int, int] = {}
    contradicted: set[int] = set()
    count = unanswered = 0
    for count, row in enumerate(rows, start=1):
        question = _question(row, source, f"{place}, row {count - 1}")
        if not question.answer:
            unanswered += 1
            continue
        asked = "\0".join(message["content"] for message in question.messages)
        begun = first.setdefault(asked, count - 1)
        times[begun] = times.get(begun, 0) + 1
        if begun == count - 1:
            questions[begun] = question
        elif questions[begun].answer != question.answer:
            contradicted.add(begun)
    for begun in contradicted:
        del questions[begun]
    if not questions:
        raise SgpoError(f"{place}: no row with an answer in {source.columns[-1]}: is it {source.hub}, or a copy of it?")
    lost = sum(times[begun] for begun in contradicted)
    return Kept(questions, count, count - unanswered - lost - len(questions), lost, unanswered)


def _question(row: Mapping[str, Any], source: Source, place: str) -> Question:
    try:
        question = source.read(row)
        if not all(isinstance(text, str) for text in [question.answer, *(m["content"] for m in question.messages)]):
            raise TypeError
        return question
    except (TypeError, KeyError, AttributeError):
        shown = {column: row[column] for column in source.columns}
        raise SgpoError(f"{place}: {str(shown)[:120]} is not what {source.hub} has in these columns") from None


def write(kept: Kept, data_source: str, split: str, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "data_source": data_source,
            "prompt": question.messages,
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": question.answer},
            "extra_info": {"split": split, "index": row},
        }
        for row, question in kept.questions.items()
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
