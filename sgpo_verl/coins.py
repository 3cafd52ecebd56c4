"""Prompts as coins: what a simulation trains on. Made up, or such as a profile may have come from; and profiles of them."""

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from sgpo_verl.adaptive import next_samples
from sgpo_verl.config import Settings
from sgpo_verl.profile import Profile, ProfileMetadata

TRIVIAL, HOPELESS = 0.35, 0.35  # shares of synthetic prompts; the rest are in between
EASY, BETWEEN = (0.93, 0.995), (0.03, 0.75)  # pass rates of the first and the last, evenly spread over their logits
LEARNABLE = 0.75  # largest pass rate, before training, of a prompt that the reported accuracy is of
PROMPT, RESPONSE = 100.0, (900.0, 300.0)  # tokens: of a prompt; of an answer where none is right, where all are


@dataclass(frozen=True)
class Coins:
    """P prompts. rate_P: true pass rate before training. tokens of each prompt, and of an answer to it, on average.

    profile: the one that they were made from; None if they are synthetic.
    """

    rate_P: np.ndarray = field(repr=False)
    prompt_tokens_P: np.ndarray = field(repr=False)
    response_tokens_P: np.ndarray = field(repr=False)
    profile: Profile | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.rate_P)

    @property
    def learnable_P(self) -> np.ndarray:
        return (self.rate_P > 0) & (self.rate_P <= LEARNABLE)


def logit(p: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)); minus infinity at 0."""
    with np.errstate(divide="ignore"):
        return np.log(p) - np.log1p(-p)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def synthetic(prompts: int, seed: int) -> Coins:
    """A pool as real ones are: 35% trivial, 35% never solvable, the rest in between; harder prompts get longer answers."""
    rng = np.random.default_rng([seed, 0])
    trivial, hopeless = round(TRIVIAL * prompts), round(HOPELESS * prompts)
    rate_P = np.zeros(prompts)
    rate_P[:trivial] = _between(rng, EASY, trivial)
    rate_P[trivial + hopeless :] = _between(rng, BETWEEN, prompts - trivial - hopeless)
    rng.shuffle(rate_P)
    return Coins(rate_P, np.full(prompts, PROMPT), _answer_tokens(rate_P))


def _between(rng: np.random.Generator, rates: tuple[float, float], prompts: int) -> np.ndarray:
    """Pass rates whose logits are uniform."""
    low, high = logit(np.array(rates))
    return sigmoid(rng.uniform(low, high, prompts))


def _answer_tokens(rate_P: np.ndarray) -> np.ndarray:
    return RESPONSE[0] + (RESPONSE[1] - RESPONSE[0]) * rate_P


def from_profile(profile: Profile, seed: int) -> Coins:
    """Coins that such a profile may have come from: p ~ Beta(successes + 1/2, failures + 1/2), Jeffreys' prior.

    Of the never solved, as many as were solved exactly once are drawn like that, at random; the others are never solvable, and
    so are prompts that could not be sampled. Lengths are the profile's, for failed prompts their mean; made up if it has none.
    """
    rng, table = np.random.default_rng([seed, 0]), profile.table
    trials_P, wins_P = table["trials"].to_numpy(np.int64), table["successes"].to_numpy(np.int64)
    rate_P = rng.beta(wins_P + 0.5, trials_P - wins_P + 0.5).clip(1e-6, 1 - 1e-6)
    unsolved_U = rng.permutation(np.flatnonzero((wins_P == 0) & (trials_P > 0)))
    rate_P[unsolved_U[int((wins_P == 1).sum()) :]] = 0.0
    rate_P[trials_P == 0] = 0.0
    sampled_P = trials_P > 0
    if not profile.has_lengths:
        prompt_P, response_P = np.where(sampled_P, round(PROMPT), 0), np.where(sampled_P, _answer_tokens(rate_P), 0)
        profile = replace(profile, table=table.assign(prompt_tokens=prompt_P, response_tokens_mean=response_P))
    lengths = (profile.table[name].to_numpy(float) for name in ("prompt_tokens", "response_tokens_mean"))
    prompt_P, response_P = (np.where(sampled_P, P, P.sum() / max(1, sampled_P.sum())) for P in lengths)
    return Coins(rate_P, prompt_P, response_P, profile)


def profiled(coins: Coins, settings: Settings, seed: int) -> Profile:
    """The profile that a run on these coins trains from: the one they were made from, else samples of them."""
    if coins.profile is not None:
        return coins.profile
    wanted, rng = settings.profile, np.random.default_rng([seed, 1, settings.profile.n])
    trials_P = np.full(len(coins), 0 if wanted.adaptive else wanted.n, np.int64)
    wins_P = rng.binomial(trials_P, coins.rate_P)
    rules = (wanted.n * len(coins), settings.filter, settings.group_size, seed)
    while wanted.adaptive and (more_P := next_samples(trials_P, wins_P, *rules)).any():
        trials_P, wins_P = trials_P + more_P, wins_P + rng.binomial(more_P, coins.rate_P)
    columns = {"trials": trials_P, "successes": wins_P, "reward_mean": wins_P / trials_P.clip(1)}
    columns |= {"prompt_tokens": coins.prompt_tokens_P, "response_tokens_mean": coins.response_tokens_P}
    names = {"prompt_key": keys(coins), "data_source": "coins", "index": np.arange(len(coins))}
    return Profile(pd.DataFrame(names | columns), ProfileMetadata())


def keys(coins: Coins) -> list[str]:
    return [f"coin:{i}" for i in range(len(coins))]
