"""One training step, exactly: against stock verl on the same rollouts, and against the formula.

``rig.py`` runs the steps on real workers (FSDP2 over gloo, one and two ranks); here they are recomputed in one process.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import rig_formula
import tiny
import torch

pytestmark = pytest.mark.stack

MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def done(request, folder, tmp_path_factory):
    """What the rig did on so many data-parallel ranks."""
    place = tmp_path_factory.mktemp("rig")
    for name in ("model", "train.parquet", "val.parquet", "reward.py"):
        os.symlink(folder / name, place / name)
    arguments = tiny.overrides(place, **{"algorithm.adv_estimator": None, "+sgpo": "paper"})
    tiny.make_profile(place, [4] * 48, arguments)
    with (place / "log").open("w") as log:
        command = [
            sys.executable,
            str(Path(__file__).with_name("rig.py")),
            str(place),
            str(request.param),
            str(place / "out"),
        ]
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True, timeout=900)
    result = torch.load(place / "out", weights_only=False)
    return Done(result, place / "model")


class Done:
    def __init__(self, result: dict, model: Path):
        self.ranks, self.start, self.model = result["ranks"], result["start"], model
        self.cases = {(c["name"], c["who"], c["planned"], c["mode"], c["kl"]): c for c in result["cases"]}

    def case(self, name: str, updates: int, mode: str, kl: bool = False, who: str = "ours") -> dict:
        return self.cases[name, who, updates, mode, kl]

    def moved(self, case: dict) -> float:
        return distance(case["weights"], self.start)

    def by_formula(self, case: dict) -> dict[str, torch.Tensor]:
        return rig_formula.step(case, self.ranks, self.start, self.model)


def distance(a: dict, b: dict) -> float:
    """Largest difference of any weight."""
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.parametrize("kl", [False, True], ids=["no KL", "KL loss"])
@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_equal_groups_are_stock_grpo_bit_for_bit(done, mode, updates, kl):
    ours, stock = (done.case("equal", updates, mode, kl, who) for who in ("ours", "stock"))
    assert ours["keys"] == stock["keys"]
    assert ours["metrics"]["actor/pg_loss"] == stock["metrics"]["actor/pg_loss"]
    assert ours["metrics"]["actor/grad_norm"] == stock["metrics"]["actor/grad_norm"]
    assert ours["metrics"]["actor/lr"] == stock["metrics"]["actor/lr"]
    for key, advantages in stock["advantages"].items():
        assert ours["advantages"][key] == pytest.approx(advantages, abs=1e-6)
    assert distance(ours["weights"], stock["weights"]) == 0
    assert done.moved(stock) > 1e-4


@pytest.mark.parametrize("name", ["ragged", "padded", "pruned", "nearly all pruned", "rejected", "thinned"])
@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_a_step_on_ragged_groups_is_the_formulas(done, mode, updates, name):
    case = done.case(name, updates, mode)
    expected = done.by_formula(case)
    assert distance(case["weights"], expected) < 1e-4 * distance(expected, done.start)


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_a_kl_loss_counts_no_padding_rows_either(done, mode, updates):
    case = done.case("padded", updates, mode, kl=True)
    expected = done.by_formula(case)
    assert distance(case["weights"], expected) < 1e-4 * distance(expected, done.start)


@pytest.mark.parametrize("mode", MODES)
def test_leaving_out_rows_without_advantage_leaves_the_gradient(done, mode):
    pruned, whole = done.case("pruned", 1, mode), done.case("ragged", 1, mode)
    assert len(pruned["keys"]) < len(whole["keys"])
    assert distance(pruned["weights"], whole["weights"]) < 1e-4 * done.moved(whole)


@pytest.mark.parametrize("mode", MODES)
def test_a_step_in_which_every_row_is_left_out_changes_nothing(done, mode):
    case = done.case("all pruned", 1, mode)
    assert distance(case["weights"], done.start) == 0
    assert set(case["advantages"]) >= {
        row["key"] for row in case["rows"]
    }  # all of them are there for metrics and dumps


def test_padding_rows_are_few_and_leave_no_mini_batch_to_themselves(done):
    padded = 0
    for (name, who, updates, _, _), case in done.cases.items():
        if who == "stock":
            continue
        keys, padding = case["keys"], set(case["padding"])
        assert len(padding) < done.ranks * case["updates"]
        assert not padding or name not in ("equal", "ragged")  # a budget of rollouts divides
        for mini_batch in rig_formula.mini_batches(keys, done.ranks, case["updates"]):
            assert set(mini_batch) - padding
        assert case["updates"] == updates or name == "nearly all pruned"
        assert not padding or name in ("padded", "rejected")  # where rows were left out, a few of them fill up
        padded += bool(padding)
    assert padded


def test_rejected_rows_are_in_no_denominator_and_thinned_ones_are(done):
    rejected, thinned = (done.case(name, 1, "token-mean") for name in ("rejected", "thinned"))
    # kept of the groups of 2 (1 right), 2 (2), 4 (1), 8 (3), 16 (0): 2, 2 (all the same: 4 at most), 2, 6, 4
    assert len(rejected["counted"]) == 16
    assert {key for key in rejected["keys"] if key not in rejected["padding"]} == rejected["counted"]
    assert len(thinned["counted"]) == 32 > len(thinned["keys"])


def test_the_advantages_are_those_of_the_formula(done):
    case = done.case("ragged", 1, "token-sum")
    by_key = rig_formula.advantages(case["rows"])
    for row in case["rows"]:
        given = case["advantages"][row["key"]]
        assert given == pytest.approx([by_key[row["key"]] * m for m in row["mask"]], abs=1e-5)
    # u0: rewards 1 and 0, mean 1/2, std with one degree of freedom sqrt(1/2)
    assert by_key["u0_0_0"] == pytest.approx(0.5 / (math.sqrt(0.5) + 1e-6))
