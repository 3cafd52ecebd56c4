"""What adaptive profiling gains: how often a prompt's class is right, at the same number of samples.

    python docs/benchmarks/adaptive.py                                   simulated prompts of known pass rate, seconds
    python docs/benchmarks/adaptive.py --profile many_trials.parquet     real prompts: their many trials are the truth

"fixed needs" is the number of samples per prompt from which on sampling all prompts alike is right as often.
"""

import argparse
from collections.abc import Callable

import numpy as np

from sgpo_verl.adaptive import class_of, class_of_rate, next_samples
from sgpo_verl.config import FilterSettings, GroupSizeSettings
from sgpo_verl.profile import load_profile

RULES = (FilterSettings(), GroupSizeSettings())
Draw = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (trials so far, samples) -> successes among the new ones


def adaptive(draw: Draw, prompts: int, average: int) -> tuple[float, np.ndarray, np.ndarray]:
    """(samples per prompt used, trials, successes)."""
    trials_P, successes_P = np.zeros(prompts, np.int64), np.zeros(prompts, np.int64)
    while (more_P := next_samples(trials_P, successes_P, average * prompts, *RULES)).any():
        successes_P += draw(trials_P, more_P)
        trials_P += more_P
    return trials_P.sum() / prompts, trials_P, successes_P


def compare(name: str, true_P: np.ndarray, make_draw: Callable[[], Draw], average: int) -> str:
    """A row of the table."""
    count = len(true_P)
    none_P = np.zeros(count, np.int64)

    def fixed(samples: int) -> float:
        wins_P = make_draw()(none_P, np.full(count, samples))
        return (class_of(np.full(count, samples), wins_P, *RULES) == true_P).mean()

    used, trials_P, successes_P = adaptive(make_draw(), count, average)
    right = (class_of(np.maximum(trials_P, 1), successes_P, *RULES) == true_P).mean()
    needs = next((n for n in range(average, 4 * average + 1) if fixed(n) >= right), None)
    needs = f"more than {4 * average}" if needs is None else str(needs)
    return f"| {name} | {average} | {fixed(average):.3f} | {right:.3f} | {used:.2f} | {needs} |"


def simulated(rate_P: np.ndarray, seed: int) -> Callable[[], Draw]:
    def make_draw() -> Draw:
        rng = np.random.default_rng(seed)
        return lambda trials_P, more_P: rng.binomial(more_P, rate_P)

    return make_draw


def recorded(trials_P: np.ndarray, successes_P: np.ndarray, seed: int) -> Callable[[], Draw]:
    """Drawn from each prompt's own trials, without replacement."""

    def make_draw() -> Draw:
        rng, seen_P = np.random.default_rng(seed), np.zeros(len(trials_P), np.int64)

        def draw(so_far_P: np.ndarray, more_P: np.ndarray) -> np.ndarray:
            good_P = successes_P - seen_P
            wins_P = rng.hypergeometric(good_P, trials_P - so_far_P - good_P, more_P)
            seen_P[:] += wins_P
            return wins_P

        return draw

    return make_draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", help="a profile with at least 4 x n trials per prompt")
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("-n", type=int, nargs="+", default=[4, 8, 16], help="samples per prompt, on average")
    options = parser.parse_args()
    print("| pass rates | samples per prompt | class right: all alike | adaptive | it used | fixed needs |")
    print("|---|---|---|---|---|---|")
    if options.profile:
        table = load_profile(options.profile).table
        trials_P, successes_P = table["trials"].to_numpy(np.int64), table["successes"].to_numpy(np.int64)
        true_P = class_of_rate(successes_P / trials_P, *RULES)
        for n in (n for n in options.n if 4 * n <= trials_P.min()):
            print(compare(f"{len(table)} real prompts", true_P, recorded(trials_P, successes_P, 1), n))
        return
    rng = np.random.default_rng(0)
    shapes = {
        "uniform": rng.random(options.prompts),
        "U-shaped, Beta(0.4, 0.4)": rng.beta(0.4, 0.4, options.prompts),
        "mostly easy, Beta(2, 0.7)": rng.beta(2, 0.7, options.prompts),
        "mostly hard, Beta(0.4, 2)": rng.beta(0.4, 2, options.prompts),
    }
    for name, rate_P in shapes.items():
        for n in options.n:
            print(compare(name, class_of_rate(rate_P, *RULES), simulated(rate_P, 1), n))


if __name__ == "__main__":
    main()
