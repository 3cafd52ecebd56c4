"""A short real run of one of the methods, on prompts of four kinds; what other test files share of it."""

import tiny

# By the prompt's index: always right, never right, seldom, half of the time.
REWARD = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    kind = extra_info["index"] % 4
    if kind < 2:
        return float(kind == 0)
    return float(len(solution_str) == 2 if kind == 2 else len(solution_str) % 2 == 0)
"""
STEPS = 3
# bayes in groups of 2 to 4, with group-relative advantages
GROUPS = {
    "sgpo.advantage": "grpo",
    "sgpo.group_size.min": 2,
    "sgpo.group_size.max": 4,
    "sgpo.posterior.successes": 1,
    "sgpo.posterior.failures": 1,
    "sgpo.posterior.memory": 0.7,
}


def overrides(folder, run, method, **more):
    settings = {
        "algorithm.adv_estimator": None,
        "+sgpo": method,
        "trainer.total_training_steps": STEPS,
        "reward.custom_reward_function.path": tiny.make_reward(run / "reward.py", REWARD),
        **more,
    }
    return tiny.overrides(folder, **settings)


def trained(folder, run, method, **more):
    """(the logged steps, the dumped scores of every group of every step)."""
    process = tiny.train(run, overrides(folder, run, method, **more))
    assert process.returncode == 0, (run / "log").read_text()[-3000:]
    logged = tiny.metrics(run)
    assert len(logged) == STEPS
    return logged, [scores_of(run, step) for step in range(1, STEPS + 1)]


def scores_of(run, step):
    """Of every group of a step, verl's padding rows aside."""
    groups = tiny.dumped_groups(run, step).items()
    return [[row["score"] for row in rows] for uid, rows in groups if not uid.startswith("pad")]


def is_mixed(scores):
    return len(set(scores)) > 1


def check_rescued(groups, explore, most, keep):
    """AERO's groups: waves of 2 until the first success or ``most``. Returns how many of their rollouts are trained on."""
    kept = 0
    for scores in groups:
        n, c = len(scores), int(sum(scores))
        assert n in (*range(explore, most, 2), most)
        assert n == most or c  # given up only when there are so many
        if n > explore:
            assert c <= 2  # the wave before last had none: at most the last two are right
        kept += keep if c in (0, n) else 2 * c if 2 * c < n else n
    return kept
