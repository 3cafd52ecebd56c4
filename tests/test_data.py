"""Small files with the public data sets' schema -> files that verl scores, trains on, and tells apart."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from sgpo_verl.data import prepare
from sgpo_verl.data.sources import SOURCES, last_boxed
from sgpo_verl.errors import SgpoError

GSM8K = [
    {"question": "A pen costs $3. What do 4 pens cost?", "answer": "4 * 3 = <<4*3=12>>12\n#### 12"},
    {"question": "A farm has 1,150 hens and sells 15.", "answer": "1150 - 15 = 1135\n#### 1,135"},
    {"question": "It was 2 degrees and fell by 5.", "answer": "2 - 5 = -3\n#### -3"},
]
MATH = [
    {"problem": "Halve $1$.", "level": "Level 1", "type": "Algebra", "solution": "So it is $\\boxed{\\frac{1}{2}}$."},
    {"problem": "Add $1$ to $2$.", "level": "Level 1", "type": "Algebra", "solution": "\\boxed{2}? No: $\\boxed 3$."},
    {"problem": "Name $2^2$.", "level": "Level 1", "type": "Algebra", "solution": "It is $\\fbox{4}$."},
]
MATH500 = [{"problem": "Halve $3$.", "solution": "...", "answer": "\\frac{3}{2}", "unique_id": "test/algebra/1.json"}]
ASK = "Solve it. The last line of your response should be of the form Answer: $Answer.\n\n{}"


def dapo_row(text: str, answer: str, index: str) -> dict:
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": ASK.format(text), "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": index},
    }


DAPO = [dapo_row("1+1", "2", "9a9b"), dapo_row("5-8", "-3", "07c1"), dapo_row("600+55", "655", "f3e2")]
ROWS = {
    "gsm8k": {"train": GSM8K, "test": GSM8K[:2]},
    "math": {"train": MATH, "test": MATH[:2]},
    "math500": {"test": MATH500},
    "dapo": {"train": DAPO},
    "aime2024": {"train": DAPO},
}
RIGHT = {"gsm8k": "... #### {}", "math": "... $\\boxed{{{}}}$", "math500": "... \\boxed{{{}}}"}
SAID = {name: RIGHT.get(name, "...\nAnswer: {}") for name in ROWS}


def public(folder, name, rows=None):
    """A folder as a download from the hub leaves it: a parquet file per split, named after it."""
    (folder / "data").mkdir(parents=True)
    for split, of_split in (rows or ROWS[name]).items():
        pd.DataFrame(of_split).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return str(folder)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def prepared(tmp_path, name, rows=None):
    prepare.run(name, public(tmp_path / "public", name, rows), tmp_path / "out")
    return {file.name: pd.read_parquet(file) for file in sorted((tmp_path / "out").iterdir())}


@pytest.mark.parametrize("name", ROWS)
def test_verls_own_score_gives_1_for_a_right_answer_and_0_for_a_wrong_one(tmp_path, name):
    from verl.utils.reward_score import default_compute_score

    from sgpo_verl.config import Settings
    from sgpo_verl.rewards import check_score, succeeded

    frames = prepared(tmp_path, name)
    assert list(frames) == sorted(SOURCES[name].files.values())
    for row in [row for frame in frames.values() for row in frame.to_dict("records")]:
        truth = row["reward_model"]["ground_truth"]
        for answer, success in ((truth, True), (truth + "7", False), ("", False)):
            found = default_compute_score(row["data_source"], SAID[name].format(answer), truth, row["extra_info"])
            found = found if isinstance(found, dict) else {"score": found}
            check_score(found["score"], found, Settings(), "it")  # 0 or 1, or verl's acc beside it
            assert succeeded(found["score"], found, Settings()) is success


@pytest.mark.parametrize("name", ["gsm8k", "math", "dapo"])
def test_rows_are_as_verl_reads_them_and_each_prompt_has_its_own_identity(tmp_path, name):
    from omegaconf import OmegaConf
    from transformers import AutoTokenizer
    from verl.utils.dataset.rl_dataset import RLHFDataset

    from sgpo_verl.prompts import identify

    frame = prepared(tmp_path, name)["train.parquet"]
    rows = frame.to_dict("records")
    assert [set(row) for row in rows] == [{"data_source", "prompt", "ability", "reward_model", "extra_info"}] * 3
    indices = [row["extra_info"]["index"] for row in rows]
    prompts = identify([row["data_source"] for row in rows], indices, rows)
    assert list(prompts.keys_P) == [f"{SOURCES[name].data_source}:{i}" for i in range(3)]

    import qwen

    model = qwen.make_model(tmp_path / "model", [row["prompt"][0]["content"] for row in rows], steps=0)
    settings = OmegaConf.create({"max_prompt_length": 256, "filter_overlong_prompts": True, "shuffle": False})
    path = str(tmp_path / "out" / "train.parquet")
    read = RLHFDataset([path], AutoTokenizer.from_pretrained(model), settings)
    assert [read[i]["extra_info"]["index"] for i in range(len(read))] == [0, 1, 2]


def test_files_of_several_data_sets_are_read_together(tmp_path):
    import datasets

    frames = [tmp_path / name / "out" / "train.parquet" for name in ("math", "dapo", "gsm8k")]
    for name in ("math", "dapo", "gsm8k"):
        prepared(tmp_path / name, name)
    together = [datasets.load_dataset("parquet", data_files=str(path), split="train") for path in frames]
    assert len(datasets.concatenate_datasets(together)) == 9  # as verl does; it wants equal columns


def test_every_question_is_kept_once_and_the_rest_is_counted(tmp_path, capsys):
    again = [dapo_row("1+1", "2", "77aa")] * 99
    two_answers = [dapo_row("What is x?", "4", "b1"), dapo_row("What is x?", "5", "b2")]
    rows = [*DAPO, *two_answers, *again, dapo_row("Nothing?", "", "c1")]
    frame = prepared(tmp_path, "dapo", {"train": rows})["train.parquet"]
    assert [row["index"] for row in frame["extra_info"]] == [0, 1, 2]
    assert capsys.readouterr().out.endswith(
        "train.parquet: 3 prompts of 105 rows (99 repeat an earlier one, 2 ask a question that has two answers here, "
        "1 have no answer)\n"
    )


def test_a_rows_index_is_its_place_in_the_public_file_whatever_is_left_out(tmp_path):
    frame = prepared(tmp_path, "dapo", {"train": [DAPO[0], DAPO[0], DAPO[1]]})["train.parquet"]
    assert [row["index"] for row in frame["extra_info"]] == [0, 2]


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"$\boxed{\frac{1}{2}}$", r"\frac{1}{2}"),
        (r"\boxed{1} or $\boxed{2}$", "2"),
        (r"is $\boxed 3$ indeed", "3"),
        (r"$\fbox{4}$", "4"),
        (r"\boxed{\text{(A)}, \{1\}}", r"\text{(A)}, \{1\}"),
        (r"nothing", ""),
        (r"\boxed{never closed", ""),
        ("", ""),
    ],
)
def test_the_last_box_is_the_answer_as_verls_scorer_has_it(solution, answer):
    from verl.utils.reward_score import math_reward

    assert last_boxed(solution) == answer
    theirs = math_reward.last_boxed_only_string(solution) if solution else None
    if theirs and not theirs.startswith("\\fbox"):  # verl takes \fbox for a box, and stumbles over its name
        assert math_reward.remove_boxed(theirs) == answer


BAD = [
    ("gsm8k", {"train": MATH, "test": MATH}, r"split train: has no column question, answer, only problem, .*openai/gsm8k"),
    ("gsm8k", {"train": GSM8K}, r"has no split 'test', only train"),
    ("math", {"train": [{**MATH[0], "solution": "y"}], "test": MATH}, r"split train: no row with an answer in solution"),
    ("gsm8k", {"train": [GSM8K[0], {**GSM8K[1], "answer": None}], "test": GSM8K}, r"split train, row 1: .*'answer': None"),
    ("dapo", {"train": [{**DAPO[0], "prompt": "1+1"}]}, r"row 0: .*'prompt': '1\+1'.* is not what BytedTsinghua-SIA"),
    ("dapo", {"train": [{**DAPO[0], "reward_model": {"ground_truth": 2}}]}, r"row 0: .* is not what"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "rows", "message"), BAD)
def test_data_that_is_something_else_is_one_line_with_file_column_and_way_out(tmp_path, name, rows, message):
    with pytest.raises(SgpoError, match=message) as refused:
        prepared(tmp_path, name, rows)
    assert "\n" not in str(refused.value)


def test_one_file_is_read_where_one_split_is_wanted(tmp_path, capsys):
    file = tmp_path / "dapo-math-17k.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in DAPO))
    prepare.run("dapo", str(file), tmp_path / "out")
    assert "3 prompts of 3 rows" in capsys.readouterr().out
    with pytest.raises(SgpoError, match=r"is one file, this data set has the splits train, test: name the folder"):
        prepare.run("gsm8k", str(file), tmp_path / "out")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1")
    with pytest.raises(SgpoError, match=r"cannot read .*broken\.parquet"):
        prepare.run("dapo", str(broken), tmp_path / "out")
    with pytest.raises(SgpoError, match=r"notes\.txt: none of \.parquet, \.json, \.jsonl"):
        (tmp_path / "notes.txt").write_text("")
        prepare.run("dapo", str(tmp_path / "notes.txt"), tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "read", lambda *given: pytest.fail("read it"))
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "out", Path("/proc/out")):
        with pytest.raises(SgpoError, match=f"sgpo data -o {folder}: cannot be written .*: name another folder"):
            prepare.run("gsm8k", None, folder)


def sgpo(*arguments):
    command = [sys.executable, "-m", "sgpo_verl.cli", "data", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_says_what_it_wrote_or_in_one_line_why_not(tmp_path):
    done = sgpo("math500", "-o", tmp_path / "out", "--from", public(tmp_path / "public", "math500"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{tmp_path}/out/test.parquet: 1 prompts of 1 rows"
    unknown = sgpo("gsm", "-o", tmp_path)
    assert (unknown.returncode, unknown.stderr) == (
        2,
        "sgpo: sgpo data gsm: no such data set; known are gsm8k, math, math500, dapo, aime2024\n",
    )
    offline = sgpo("gsm8k", "-o", tmp_path)  # HF_HUB_OFFLINE, as conftest has it
    assert offline.returncode == 2
    assert offline.stderr.splitlines()[-1].startswith("sgpo: sgpo data: cannot read openai/gsm8k (")
    assert "--from" in offline.stderr.splitlines()[-1]
