"""A method of the user's own: the documented example as it stands, in the core and in a real run; what is refused."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import test_methods
import tiny
from paper_run import rows_of
from profiles import make_profile

from sgpo_verl.config import load_settings
from sgpo_verl.contenders import contenders
from sgpo_verl.errors import SgpoError
from sgpo_verl.extern import VERBS
from sgpo_verl.methods.base import Outcome
from sgpo_verl.plan import make_plan, plan_without_profile
from sgpo_verl.run_config import check_supported, compose
from sgpo_verl.schedule import RunNumbers

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "add_a_method.md").read_text()
EXAMPLE, RESUME_TEST = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
NUMBERS = RunNumbers(train_batch_size=4, rollout_n=4, mini_batch_size=2)  # 16 rollouts per step, 8 per update
KEYS_P = [f"toy:{i}" for i in range(12)]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "half_solved.py"
    path.write_text(EXAMPLE)
    return path


def settings_for(path, name="HalfSolved", kwargs=None, **more):
    custom = {"path": str(path), "name": name, "kwargs": kwargs or {}}
    return load_settings({"method": "prune", "curriculum": {"order": "custom", "custom": custom}, **more})


def planned(path, keys_P=KEYS_P, numbers=NUMBERS, **more):
    return plan_without_profile(keys_P, settings_for(path, **more), numbers)


# --- the page's example -----------------------------------------------------------------------------------------------


def test_the_pages_own_resume_test_passes(file):
    (file.parent / "test_resume.py").write_text(RESUME_TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir=.", "test_resume.py"]
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_the_example_draws_half_solved_prompts_first_and_the_profile_tells_it_which(file):
    successes = [0, 8, 4, 1, 7, 4, 0, 8, 4, 3, 5, 0]
    settings = settings_for(file, kwargs={"epsilon": 0.0})
    method, _ = make_plan(make_profile(successes), settings, NUMBERS).plan.start()
    assert {prompt for prompt, _ in method.next_groups(16)} < {2, 5, 8, 9, 10}  # three of rate 1/2, one of 3/8 or 5/8
    # Prompts 2, 5 and 8 turn out to be easy now: (1/2 + 1) / 2 = 3/4 is further off than 3/8 and 5/8.
    method.observe([Outcome(prompt, 4, 4, 1.0) for prompt in (2, 5, 8)])
    assert {prompt for prompt, _ in method.next_groups(8)} == {9, 10}
    assert method.metrics()["custom/half_solved"] == pytest.approx(2 / 12)  # 3/4 is not within 1/4


def test_a_share_epsilon_goes_to_prompts_at_random(file):
    keys_P = [f"toy:{i}" for i in range(100)]
    method, _ = planned(file, keys_P, kwargs={"epsilon": 0.5}).start()
    method.observe([Outcome(prompt, 4, 4, 1.0) for prompt in range(10, 100)])
    drawn = [prompt for _ in range(200) for prompt, _ in method.next_groups(16)]
    assert len(drawn) == 800
    assert 0.35 < np.mean(np.array(drawn) >= 10) < 0.55  # half at random, of which nine in ten are easy


# --- its part in the plan ---------------------------------------------------------------------------------------------

WHOLE = """
class Mine:
    def __init__(self, context, **kwargs):
        self.context, self.kwargs = context, kwargs
        self.seen = []

    def next_groups(self, rollouts):
        return {next_groups}

    def more_groups(self, sizes):
        return {more_groups}

    def observe(self, outcomes):
        self.seen += [o.prompt for o in outcomes]

    def state_dict(self):
        return {{"seen": self.seen}}

    def load_state_dict(self, state):
        self.seen = state["seen"]

    def metrics(self):
        return {metrics}
"""
ALL = "self.context.groups(self.context.prompts_M, rollouts)"


def mine(folder, next_groups=ALL, more_groups="[(0, size) for size in sizes]", metrics="{}", name="mine.py"):
    path = folder / name
    path.write_text(WHOLE.format(next_groups=next_groups, more_groups=more_groups, metrics=metrics))
    return path


def own(plan):
    return plan.start()[0].own


def test_the_context_says_what_the_parts_decided(tmp_path):
    path = mine(tmp_path)
    bare = own(planned(path, name="Mine", kwargs={"a": 1})).context
    assert (list(bare.keys_P), bare.prompts_M.tolist(), bare.size) == (KEYS_P, list(range(12)), 4)
    assert (bare.rollouts, bare.total_rollouts, bare.seed, bare.trials_P) == (16, 3 * 16, 0, None)
    assert bare.posterior.a_P.tolist() == [1.0] * 12  # nothing is known
    # groups of 2, 4 and 8 for 3, 2 and 1 of 8 successes; 8 of 8 is left out
    successes = [3, 8, 2, 1, 3]
    by_profile = settings_for(path, "Mine", method="paper", group_size={"max": 8})
    told = own(make_plan(make_profile(successes), by_profile, NUMBERS).plan).context
    assert told.prompts_M.tolist() == [0, 4, 2, 3]
    assert (told.sizes_P.tolist(), told.size) == ([2, 0, 4, 8, 2], None)
    assert told.successes_P.tolist() == successes
    assert told.groups([3, 0, 2], 14) == [(3, 8), (0, 2), (2, 4)]
    assert told.groups([0, 3, 2], 8) == [(0, 2), (3, 6)]  # what is left is the next prompt's
    assert bare.groups([5, 6], 12) == [(5, 4), (6, 4), (5, 4)]  # begins again
    assert bare.groups([5, 6], 9) == [(5, 5), (6, 4)]


def test_the_posterior_is_the_one_that_the_run_keeps(tmp_path):
    method, posterior = planned(mine(tmp_path), name="Mine").start()
    posterior.observe([Outcome(3, 4, 4, 1.0)])
    assert method.own.context.posterior.a_P[3] == 5.0


def test_a_state_that_was_saved_does_not_change_with_the_run(tmp_path):
    plan = planned(mine(tmp_path), name="Mine")
    method, resumed = plan.start()[0], plan.start()[0]
    method.observe([Outcome(7, 4, 2, 0.5)])
    saved = method.state_dict()
    method.observe([Outcome(8, 4, 2, 0.5)])
    resumed.load_state_dict(saved)
    assert (saved["own"], resumed.own.seen, method.own.seen) == ({"seen": [7]}, [7], [7, 8])


def test_a_checkpoint_is_of_the_text_of_the_file_and_its_kwargs_wherever_it_lies(tmp_path):
    state = planned(mine(tmp_path), name="Mine", kwargs={"a": 1}).start()[0].state_dict()
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    planned(mine(moved, name="other.py"), name="Mine", kwargs={"a": 1}).start()[0].load_state_dict(state)
    for other in (
        planned(mine(tmp_path, name="edited.py", metrics="{'x': 1}"), name="Mine", kwargs={"a": 1}),
        planned(mine(tmp_path), name="Mine", kwargs={"a": 2}),
    ):
        with pytest.raises(SgpoError, match=r"its plan is not this run's \(sgpo\.curriculum\.custom: checkpoint"):
            other.start()[0].load_state_dict(state)
    with pytest.raises(SgpoError, match=r"its sgpo state cannot be \(own=3\)"):
        planned(mine(tmp_path), name="Mine", kwargs={"a": 1}).start()[0].load_state_dict({**state, "own": 3})


def test_a_module_of_an_installed_package_is_named_by_pkg(tmp_path, monkeypatch):
    (tmp_path / "their_package").mkdir()
    (tmp_path / "their_package" / "__init__.py").write_text("")
    mine(tmp_path / "their_package")
    monkeypatch.syspath_prepend(tmp_path)
    plan = planned("pkg://their_package.mine", name="Mine")
    assert plan.start()[0].next_groups(16) == [(0, 4), (1, 4), (2, 4), (3, 4)]
    from_file = planned(tmp_path / "their_package" / "mine.py", name="Mine")
    assert plan.fingerprint() == from_file.fingerprint()


def test_it_is_simulated_beside_the_others(file):
    spec = (
        f"prune sgpo.curriculum.order=custom sgpo.curriculum.custom.path={file} sgpo.curriculum.custom.name=HalfSolved"
    )
    row = contenders([], [spec], steps=4)[-1]
    method, _ = plan_without_profile(KEYS_P, row.settings, row.numbers).start()
    assert sum(size for _, size in method.next_groups(method.step_rollouts())) == 64


# --- what is refused --------------------------------------------------------------------------------------------------

RAISES = {"raises.py": "LENGTHS[0]"}


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"path": "{}/none.py"}, r"custom\.path=.*none\.py: no such file"),
        ({"path": "pkg://no_such.module"}, r"custom\.path=pkg://no_such\.module: no such module here"),
        ({"path": "{}/syntax.py"}, r"syntax\.py: cannot be imported \(SyntaxError"),
        ({"path": "{}/needs.py"}, r"needs\.py: cannot be imported \(ModuleNotFoundError: No module named 'not_here'"),
        ({"path": "{}/raises.py"}, r"raises\.py: cannot be imported \(NameError: name 'LENGTHS' is not defined\)"),
        ({"path": "{}/text.txt"}, r"text\.txt: not a Python file"),
        ({"name": "Yours"}, r"custom\.name=Yours: no such class in .*half_solved\.py; its classes: HalfSolved"),
        ({"name": "np"}, r"custom\.name=np: no such class"),
        (
            {"kwargs": {"epsilom": 1}},
            r"custom\.kwargs=.*unexpected keyword argument 'epsilom'.*epsilon=0\.2, memory=0\.5",
        ),
    ],
)
def test_what_is_no_method_is_refused_when_the_configuration_is_checked(file, broken, words):
    for name, source in {"syntax.py": "def", "needs.py": "import not_here", "text.txt": EXAMPLE, **RAISES}.items():
        (file.parent / name).write_text(source)
    broken = {key: value.format(file.parent) if key == "path" else value for key, value in broken.items()}
    custom = {"path": str(file), "name": "HalfSolved", **broken}
    config = compose(["+sgpo=prune"])
    config["sgpo"]["curriculum"] |= {"order": "custom", "custom": custom}
    with pytest.raises(SgpoError, match=words):
        check_supported(config)


def test_a_package_that_cannot_be_imported_is_refused_with_its_reason(tmp_path, monkeypatch):
    (tmp_path / "too_old").mkdir()
    (tmp_path / "too_old" / "__init__.py").write_text("raise ImportError('needs a newer numpy')")
    mine(tmp_path / "too_old")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        SgpoError, match=r"pkg://too_old\.mine: cannot be imported \(ImportError: needs a newer numpy\)"
    ):
        planned("pkg://too_old.mine", name="Mine").start()


@pytest.mark.parametrize("verb", VERBS)
def test_a_class_that_lacks_a_verb_is_refused(tmp_path, verb):
    path = mine(tmp_path)
    path.write_text(path.read_text().replace(f"def {verb}(", f"def no_{verb}("))
    with pytest.raises(SgpoError, match=rf"custom\.name=Mine: lacks {verb}; a method has next_groups, "):
        planned(path, name="Mine").start()


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ("None", r"Mine\.next_groups\(16\): returned None, not a list of \(position, rollouts\)"),
        ("[3, 4]", r"returned \[3, 4\], not a list"),
        ("[(0, 8), (1, 4)]", r"its 2 groups have 12 rollouts in all, not 16"),
        ("[(0, 8), (12, 8)]", r"position 12 is outside the data, whose prompts are 0 to 11"),
        ("[(0, 8), (-1, 8)]", r"position -1 is outside the data"),
        ("[(0, 8), ('toy:3', 8)]", r"\('toy:3', 8\) is not a position and a number of rollouts"),
        ("[(0, 8.0), (1, 8)]", r"\(0, 8\.0\) is not a position"),
        ("[(0, 16), (1, 0)]", r"a group of 16 rollouts for prompt toy:0 \(position 0\); it may have 1 to 8"),
        ("[(0, 8), (1, 8), (2, 0)]", r"a group of 0 rollouts"),
    ],
)
def test_groups_that_cannot_be_are_refused_by_name(tmp_path, returned, words):
    method, _ = planned(mine(tmp_path, returned), name="Mine").start()
    with pytest.raises(SgpoError, match=words):
        method.next_groups(16)


def test_a_prompt_that_the_filter_left_out_is_refused(tmp_path):
    settings = settings_for(mine(tmp_path, "[(1, 8), (0, 8)]"), "Mine", method="paper")
    method, _ = make_plan(make_profile([3, 8, 2, 1]), settings, NUMBERS).plan.start()
    with pytest.raises(SgpoError, match=r"prompt toy:1 \(position 1\) is none of context\.prompts_M: sgpo\.filter"):
        method.next_groups(16)


@pytest.mark.parametrize(
    "part", [{"filter": "mixed", "prune": False}, {"allocation": "rescue", "aero": {"explore": 4}}]
)
def test_where_groups_must_be_of_one_size_others_are_refused(tmp_path, part):
    fitting, _ = planned(mine(tmp_path), name="Mine", **part).start()
    assert [size for _, size in fitting.next_groups(16)] == [4] * 4
    other, _ = planned(mine(tmp_path, "[(0, 8), (1, 8)]", name="other.py"), name="Mine", **part).start()
    with pytest.raises(SgpoError, match=r"groups of \[8\] rollouts; .* need split\(16, 4\), groups of 4"):
        other.next_groups(16)


def test_refills_have_the_sizes_that_were_asked_for_and_metrics_are_numbers(tmp_path):
    path = mine(tmp_path, more_groups="[(0, 4) for _ in sizes]", metrics="{'name': 'x'}")
    method, _ = planned(path, name="Mine").start()
    assert method.more_groups([4, 4]) == [(0, 4), (0, 4)]
    with pytest.raises(SgpoError, match=r"Mine\.more_groups\(\[4, 2\]\): gave sizes \[4, 4\]"):
        method.more_groups([4, 2])
    with pytest.raises(SgpoError, match=r"Mine\.metrics\(\): name='x' is not a number"):
        method.metrics()


# --- real verl --------------------------------------------------------------------------------------------------------


@pytest.mark.stack
def test_the_example_trains_on_what_it_chooses(folder, tmp_path, file):
    more = {
        "sgpo.curriculum.order": "custom",
        "sgpo.curriculum.custom.path": file,
        "sgpo.curriculum.custom.name": "HalfSolved",
        "+sgpo.curriculum.custom.kwargs.epsilon": 0.3,
        "trainer.total_epochs": 2,
    }
    logged, steps = test_methods.trained(folder, tmp_path, "prune", **more)
    row_of = rows_of(folder)
    numbers = RunNumbers(train_batch_size=8, rollout_n=8, mini_batch_size=4, total_epochs=2, total_training_steps=3)
    replayed, _ = planned(file, [f"sums:{i}" for i in range(48)], numbers, kwargs={"epsilon": 0.3}).start()
    for step, (metrics, groups) in enumerate(zip(logged, steps, strict=True), start=1):
        dumped = tiny.dumped_groups(tmp_path, step)
        trained = [(row_of[rows[0]["input"]], rows) for uid, rows in dumped.items() if not uid.startswith("pad")]
        assert sorted((prompt, len(rows)) for prompt, rows in trained) == sorted(replayed.next_groups(64))
        wins = [(prompt, int(sum(row["score"] for row in rows))) for prompt, rows in trained]
        replayed.observe([Outcome(prompt, 8, successes, successes / 8) for prompt, successes in wins])
        told = replayed.metrics()
        assert {name: metrics[f"sgpo/{name}"] for name in told} == pytest.approx(told)
        mixed = sum(len(scores) for scores in groups if test_methods.is_mixed(scores))
        assert metrics["sgpo/rollouts/generated"] == 64
        assert metrics["sgpo/rollouts/trained"] in (mixed, mixed + 1)  # two updates of equal size
    assert logged[-1]["sgpo/curriculum/progress"] == 1.0
