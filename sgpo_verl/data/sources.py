"""The public data sets: where they are, which columns they have, and how a row becomes a question with its answer.

Every ``data_source`` is one that verl's own ``default_compute_score`` knows, and every prompt asks for the answer in
the form that this function reads:

    openai/gsm8k       "... #### 72"          digits after "####"
    MATH, MATH-500     "... \\boxed{\\frac12}"  the last \\boxed{}
    math_dapo, aime*   "... Answer: 34"       the last "Answer:" line
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Question:
    """messages: what the model is asked. answer: the ground truth, "" where the row has none."""

    messages: Messages
    answer: str


@dataclass(frozen=True)
class Source:
    """hub, config: its name on the hub. files: split there -> file written. columns: those that ``read`` needs."""

    hub: str
    config: str
    files: Mapping[str, str]
    data_source: str
    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Question]


def _asked(text: str, instruction: str) -> Messages:
    return [{"role": "user", "content": f"{text} {instruction}"}]


def _gsm8k(row: Mapping[str, Any]) -> Question:
    found = re.search(r"#### (-?[0-9.,]+)", row["answer"])
    answer = found.group(1).replace(",", "") if found else ""
    return Question(
        _asked(row["question"], 'Let\'s think step by step and output the final answer after "####".'), answer
    )


BOXED = "Let's think step by step and output the final answer within \\boxed{}."


def _math(row: Mapping[str, Any]) -> Question:
    return Question(_asked(row["problem"], BOXED), last_boxed(row["solution"]))


def _math500(row: Mapping[str, Any]) -> Question:
    return Question(_asked(row["problem"], BOXED), row["answer"])


def _messages(row: Mapping[str, Any]) -> Question:
    """DAPO's files ask for "Answer: ..." themselves."""
    messages = [{"role": message["role"], "content": message["content"]} for message in row["prompt"]]
    return Question(messages, row["reward_model"]["ground_truth"])


def last_boxed(solution: str) -> str:
    r"""What is inside the last \boxed{...} (or \fbox{...}, or after "\boxed "), braces balanced; "" if there is none."""
    start = max(solution.rfind("\\boxed"), solution.rfind("\\fbox"))
    if start < 0:
        return ""
    rest = solution[start:].split("box", 1)[1].removeprefix("ed")
    if rest.startswith(" "):
        return rest[1:].split("$")[0]
    depth = 0
    for place, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:place]
    return ""


MATH_COLUMNS = ("problem", "solution")
DAPO_COLUMNS = ("prompt", "reward_model")
TRAIN_AND_TEST = {"train": "train.parquet", "test": "test.parquet"}

SOURCES = {
    "gsm8k": Source("openai/gsm8k", "main", TRAIN_AND_TEST, "openai/gsm8k", ("question", "answer"), _gsm8k),
    "math": Source(
        "DigitalLearningGmbH/MATH-lighteval",
        "default",
        TRAIN_AND_TEST,
        "DigitalLearningGmbH/MATH-lighteval",
        MATH_COLUMNS,
        _math,
    ),
    "math500": Source(
        "HuggingFaceH4/MATH-500",
        "default",
        {"test": "test.parquet"},
        "HuggingFaceH4/MATH-500",
        ("problem", "answer"),
        _math500,
    ),
    "dapo": Source(
        "BytedTsinghua-SIA/DAPO-Math-17k", "default", {"train": "train.parquet"}, "math_dapo", DAPO_COLUMNS, _messages
    ),
    "aime2024": Source(
        "BytedTsinghua-SIA/AIME-2024", "default", {"train": "test.parquet"}, "aime2024", DAPO_COLUMNS, _messages
    ),
}
