"""Any method on prompts that are coins, whose bias rises as they are taught: seconds instead of a training run.

What decides is the code that trains: plan, curriculum, posterior, refill, rescue, advantages, rows left out, FLOPs. What is
made up is the policy, and this is all of it. A prompt q has a logit x_q and is solved with probability p_q = 1/(1 + exp(-x_q));
one that can never be solved has p_q = 0 for good. d_q is its logit before training, its difficulty. A step of k updates:

    u_q  = sum over trained rows of q of A_i (s_i - p_q) / rows that count    REINFORCE on x_q: d log P(s) / dx = s - p
    K_qr = own [q = r] + (1 - own) exp(-(d_q - d_r)^2 / (2 width^2))          what r learns helps q, the more the more alike
    n^2  = k noise^2 (sum of A_i^2) / (rows that count)^2                     what is peculiar to each row, and teaches nothing
    v    = running mean of u'Ku + n^2, as Adam's, by beta2
    x_q += rate k (Ku)_q / sqrt(v), after x_q - d_q has shrunk by exp(-erosion k n^2 / v)

The coins' luck makes u noisy; expected, it is right whatever the baseline. Rows with an advantage and no skill in them (of a
prompt that is never solved) add to n alone: they slow Adam down and wear off what was learned. So progress grows as the square
root of the teaching rows where they are few, hardly where they are many, and a run levels off where noise takes what it learns.

Not in it: entropy, clipping, stale rollouts, answers whose length changes, prompts of one kind that are harder than they look.
The constants were set by hand until stock GRPO learned as in a small real run (docs/simulate.md). It is a model of learning.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from sgpo_verl.coins import Coins, keys, logit, profiled, sigmoid
from sgpo_verl.config import Settings
from sgpo_verl.cost import ModelShape, StepTokens
from sgpo_verl.methods.aero import more
from sgpo_verl.methods.base import Groups, Method
from sgpo_verl.methods.greso import refill
from sgpo_verl.metrics import Ledger
from sgpo_verl.minibatches import updates_of
from sgpo_verl.plan import Plan, make_plan, plan_without_profile
from sgpo_verl.schedule import RunNumbers
from sgpo_verl.selection import Sampled, Selection, outcomes_of, select

NOMINAL = ModelShape(parameters=1_310_000_000, attention=28 * 12 * 128)  # Qwen2.5-1.5B, where no model is at hand
BINS = 96  # difficulties told apart when what is learned is spread
EVALUATIONS = 40  # of a run, about
GIVE_UP = 64  # batches that filter=mixed samples to fill one


@dataclass(frozen=True)
class Learning:
    """The policy's constants, as above; rate 0: nothing is learned. beta2: Adam's."""

    rate: float = 0.3
    own: float = 0.1
    width: float = 2.0
    noise: float = 4.0
    erosion: float = 0.02
    beta2: float = 0.999


class Policy:
    """What has been learned of each prompt: Adam's state, a shift for each difficulty, and what only the prompt itself got."""

    def __init__(self, rate_P: np.ndarray, learning: Learning):
        self.learning, self.start_P = learning, logit(rate_P)
        solvable_P = np.isfinite(self.start_P)
        low, high = (self.start_P[solvable_P].min(), self.start_P[solvable_P].max()) if solvable_P.any() else (0.0, 0.0)
        place_P = (np.where(solvable_P, self.start_P, low) - low) / max(high - low, 1e-9) * (BINS - 1)
        self.bin_P = np.rint(place_P).astype(np.int64)
        apart_B = np.linspace(low, high, BINS)
        self.alike_BB = np.exp(-((apart_B[:, None] - apart_B) ** 2) / (2 * learning.width**2))
        self.shift_B, self.own_P = np.zeros(BINS), np.zeros(len(rate_P))
        self.square, self.updates = 0.0, 0

    def pass_rate(self, prompts: np.ndarray) -> np.ndarray:
        """p of these prompts: by their positions, or by a mask of all."""
        return sigmoid(self.start_P[prompts] + self.shift_B[self.bin_P[prompts]] + self.own_P[prompts])

    def learn(self, prompt_N: np.ndarray, gradient_N: np.ndarray, squares: float, updates: int) -> None:
        """gradient_N: what each row adds to u of its prompt. squares: sum of A_i^2 / (rows that count)^2. updates: k."""
        how = self.learning
        prompts_Q, which_N = np.unique(prompt_N, return_inverse=True)
        u_Q = np.bincount(which_N, gradient_N)
        u_B = np.bincount(self.bin_P[prompts_Q], u_Q, BINS)
        spread_B = self.alike_BB @ u_B
        peculiar = updates * how.noise**2 * squares
        size = float(how.own * u_Q @ u_Q + (1 - how.own) * u_B @ spread_B) + peculiar
        kept = how.beta2**updates
        self.square, self.updates = kept * self.square + (1 - kept) * size, self.updates + updates
        v = self.square / (1 - how.beta2**self.updates)
        step, left = how.rate * updates / np.sqrt(v), np.exp(-how.erosion * updates * peculiar / v)
        self.shift_B = left * self.shift_B + step * (1 - how.own) * spread_B
        self.own_P *= left
        self.own_P[prompts_Q] += step * how.own * u_Q


@dataclass(frozen=True)
class Course:
    """What became of one run.

    evals: index step; accuracy, the mean true pass rate of the learnable prompts; total_flops and the other costs, named as
    in a report. groups, mixed: sampled in training. teaching: rollouts in mixed groups. signal: sum of A_i (s_i - p_q) over
    what was trained. rollouts, flops: the profile's included.
    """

    evals: pd.DataFrame = field(repr=False)
    steps: int
    groups: int
    mixed: int
    teaching: int
    signal: float
    rollouts: int
    profile_rollouts: int
    flops: float


def simulate(
    coins: Coins,
    settings: Settings,
    numbers: RunNumbers,
    shape: ModelShape = NOMINAL,
    learning: Learning | None = None,
    normalize_by_std: bool = True,
    seed: int = 0,
) -> Course:
    """One run. Deterministic in its arguments; its method's own seed is ``sgpo.seed`` + ``seed``.

    Raises SgpoError where the plan does: nothing to train on, or sizes that contradict each other.
    """
    settings = settings.model_copy(update={"seed": settings.seed + seed})
    ledger = Ledger()
    if settings.needs_profile or settings.profile.path:
        profile = profiled(coins, settings, seed)
        plan, ledger = make_plan(profile, settings, numbers).plan, Ledger.after_profile(shape, profile)
    else:
        plan = plan_without_profile(keys(coins), settings, numbers)
    run = _Run(coins, plan, ledger, shape, learning or Learning(), normalize_by_std, seed)
    evals = [run.evaluate(0)]
    every = max(1, plan.total_steps // EVALUATIONS)
    for step in range(1, plan.total_steps + 1):
        run.step()
        if step % every == 0 or step == plan.total_steps:
            evals.append(run.evaluate(step))
    return Course(
        evals=pd.DataFrame(evals).set_index("step"),
        steps=plan.total_steps,
        groups=run.groups,
        mixed=run.mixed,
        teaching=run.teaching,
        signal=run.signal,
        rollouts=ledger.rollouts_profile + ledger.rollouts_generated,
        profile_rollouts=ledger.rollouts_profile,
        flops=ledger.metrics()["flops/total"],
    )


@dataclass(frozen=True)
class _Groups:
    """Sampled groups: prompts, sizes and successes, int64 (G,)."""

    prompt_G: np.ndarray
    size_G: np.ndarray
    wins_G: np.ndarray

    def of(self, places: Sequence[int]) -> "_Groups":
        return _Groups(self.prompt_G[places], self.size_G[places], self.wins_G[places])


class _Run:
    """The trainer's step (``binding/trainer.py``), with coins in place of a model."""

    def __init__(
        self,
        coins: Coins,
        plan: Plan,
        ledger: Ledger,
        shape: ModelShape,
        learning: Learning,
        normalize_by_std: bool,
        seed: int,
    ):
        self.coins, self.plan, self.settings, self.numbers = coins, plan, plan.settings, plan.numbers
        self.ledger, self.shape, self.normalize_by_std = ledger, shape, normalize_by_std
        self.policy, self.rng = Policy(coins.rate_P, learning), np.random.default_rng([seed, 2])
        self.method: Method
        self.method, self.posterior = plan.start()
        self.groups = self.mixed = self.teaching = 0
        self.signal = 0.0

    def step(self) -> None:
        groups = self.method.next_groups(self.method.step_rollouts())
        kept, dropped = self._fill(groups) if self.settings.filter.by == "mixed" else (self._toss(groups), None)
        sampled = self._rows(kept)
        p_N = self.policy.pass_rate(sampled.prompt_N)
        seeds = [self.settings.seed, 1, self.ledger.rollouts_generated]
        chosen = select(sampled, self.settings, seeds, self.normalize_by_std)
        outcomes = [*(outcomes_of(self._rows(dropped)) if dropped is not None else []), *outcomes_of(sampled)]
        self.method.observe(outcomes)
        if self.posterior is not None:
            self.posterior.observe(outcomes)
        self.groups += len(outcomes)
        self.mixed += sum(o.kind == "mixed" for o in outcomes)
        self.teaching += sum(o.size for o in outcomes if o.kind == "mixed")
        advantage_N = np.where(chosen.trained_N, chosen.advantages_N, 0.0)
        self._learn(sampled, advantage_N, advantage_N * (sampled.successes_N - p_N), chosen)
        self._pay(kept, chosen.trained_N, sampled.tokens_N)
        if dropped is not None:
            self._pay(dropped)

    def _learn(self, sampled: Sampled, advantage_N: np.ndarray, gradient_N: np.ndarray, chosen: Selection) -> None:
        self.signal += float(gradient_N.sum())
        if not advantage_N.any():
            return
        counted = int(chosen.counts_N.sum())
        updates = updates_of(int(chosen.trained_N.sum()), self.numbers.updates_per_step) * self.numbers.ppo_epochs
        self.policy.learn(sampled.prompt_N, gradient_N / counted, float((advantage_N**2).sum()) / counted**2, updates)

    def _toss(self, groups: Groups) -> _Groups:
        """Sample these groups; with allocation=rescue, more of those that have no success."""
        prompt_G, size_G = np.array(groups, dtype=np.int64).T.copy()
        p_G = self.policy.pass_rate(prompt_G)
        wins_G = self.rng.binomial(size_G, p_G)
        if self.settings.allocation == "rescue":
            for g in range(len(groups)):
                while added := more(int(size_G[g]), int(wins_G[g]), self.settings.aero):
                    size_G[g] += added
                    wins_G[g] += self.rng.binomial(added, p_G[g])
        return _Groups(prompt_G, size_G, wins_G)

    def _fill(self, groups: Groups) -> tuple[_Groups, _Groups]:
        """(a step of mixed groups, all others that were sampled for it). Groups finish in the order of their draw."""
        wanted, size = len(groups), self.plan.phases[0].group_size
        waiting, done, kept, dropped = deque(range(wanted)), self._toss(groups), [], []
        while waiting:
            place = waiting.popleft()
            if 0 < done.wins_G[place] < done.size_G[place]:
                kept.append(place)
                continue
            dropped.append(place)
            missing = wanted - len(kept) - len(waiting)
            if missing > 0 and len(dropped) < GIVE_UP * wanted:
                prompts = refill(missing, len(dropped) / (len(kept) + len(dropped)), wanted, self.settings.greso)
                new = self._toss(self.method.more_groups([size] * prompts))
                waiting.extend(range(len(done.size_G), len(done.size_G) + len(new.size_G)))
                done = _Groups(
                    *(np.concatenate(pair) for pair in zip(vars(done).values(), vars(new).values(), strict=True))
                )
        return done.of(kept[:wanted]), done.of(dropped + kept[wanted:])

    def _rows(self, groups: _Groups) -> Sampled:
        """One row per rollout; within a group, successes first: their order means nothing."""
        group_N = np.repeat(np.arange(len(groups.size_G)), groups.size_G)
        prompt_N = groups.prompt_G[group_N]
        first_G = np.cumsum(groups.size_G) - groups.size_G
        success_N = (np.arange(len(group_N)) - first_G[group_N] < groups.wins_G[group_N]).astype(np.int64)
        tokens_N = self.coins.prompt_tokens_P[prompt_N] + self.coins.response_tokens_P[prompt_N]
        believed = self.posterior.believed(prompt_N) if self.posterior is not None else (None, None)
        return Sampled(success_N.astype(float), success_N, group_N, prompt_N, tokens_N, *believed)

    def _pay(self, groups: _Groups, trained_N: np.ndarray | None = None, tokens_N: np.ndarray | None = None) -> None:
        """trained_N, tokens_N: of the rows of these groups; None: they were dropped."""
        rows, trained_rows, trained = int(groups.size_G.sum()), 0, 0.0
        if trained_N is not None and tokens_N is not None and rows:
            trained_rows, trained = int(trained_N.sum()), float(tokens_N[trained_N].sum())
            if not trained_rows:  # verl needs a row to go on with
                trained_rows, trained = 1, float(tokens_N.min())
        tokens = StepTokens(
            groups=len(groups.size_G),
            prompt_tokens=float(self.coins.prompt_tokens_P[groups.prompt_G].sum()),
            rows=rows,
            response_tokens=float((groups.size_G * self.coins.response_tokens_P[groups.prompt_G]).sum()),
            trained=trained,
            trained_rows=trained_rows,
            scoring_passes=self.numbers.scoring_passes,
            epochs=self.numbers.ppo_epochs,
        )
        self.ledger.add(self.shape, tokens, rows)

    def evaluate(self, step: int) -> dict[str, float]:
        learnable_P = self.coins.learnable_P
        totals = self.ledger.metrics()
        return {
            "step": step,
            "accuracy": float(self.policy.pass_rate(learnable_P).mean()) if learnable_P.any() else float("nan"),
            "total_flops": totals["flops/total"],
            "total_trained_tokens": totals["tokens/total_trained"],
            "total_rollouts": totals["rollouts/total"],
            "total_seconds": float("nan"),
        }
