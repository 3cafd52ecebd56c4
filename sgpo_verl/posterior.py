"""What is believed of every prompt's pass rate: a Beta distribution each, moved by every rollout, of profile or training.

    (a, b) = prior + weight x (successes, failures) of the profile
    after a group of G with c successes:  a <- a0 + memory (a - a0) + c,  b <- b0 + memory (b - b0) + G - c

Old evidence fades because the policy moves: with memory 0.9 no more than ten groups' worth is kept, with 0.7 three.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sgpo_verl.config import PosteriorSettings
from sgpo_verl.methods.base import Outcome, check_array

LEAST, LARGEST = 1e-37, 1e35  # beyond any count or length, and finite when added up


class Posterior:
    """Beta(a, b) of each of P prompts, float32. trials_P, successes_P: of a profile; zeros where there is none.

    tokens_P: of a rollout of each prompt, on average, float32; 0: not known.
    """

    def __init__(
        self, trials_P: np.ndarray, successes_P: np.ndarray, tokens_P: np.ndarray, settings: PosteriorSettings
    ):
        self.settings = settings
        weight = np.float32(settings.profile_weight)
        self.a_P = (settings.successes + weight * successes_P).astype(np.float32)
        self.b_P = (settings.failures + weight * (trials_P - successes_P)).astype(np.float32)
        self.tokens_P = tokens_P.astype(np.float32)

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        keep, (a0, b0) = self.settings.memory, (self.settings.successes, self.settings.failures)
        for o in outcomes:  # one after another: a prompt may have several groups
            self.a_P[o.prompt] = a0 + keep * (self.a_P[o.prompt] - a0) + o.successes
            self.b_P[o.prompt] = b0 + keep * (self.b_P[o.prompt] - b0) + o.size - o.successes
            if o.tokens:
                known = self.tokens_P[o.prompt]
                self.tokens_P[o.prompt] = keep * known + (1 - keep) * o.tokens if known else o.tokens

    def believed(self, prompts_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(a, b) of these prompts, float64 (G,), scaled down to a + b <= ``strength``: an advantage's prior."""
        a_G, b_G = self.a_P[prompts_G].astype(np.float64), self.b_P[prompts_G].astype(np.float64)
        scale_G = np.minimum(1.0, self.settings.strength / (a_G + b_G))
        return a_G * scale_G, b_G * scale_G

    def draw(self, prompts_M: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A pass rate for each, from its posterior: float64 (M,)."""
        return rng.beta(self.a_P[prompts_M], self.b_P[prompts_M])

    def state_dict(self) -> dict[str, Any]:
        return {"a_P": self.a_P.copy(), "b_P": self.b_P.copy(), "tokens_P": self.tokens_P.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        a_P, b_P = (check_array(state, name, self.a_P, LEAST, LARGEST) for name in ("a_P", "b_P"))
        self.tokens_P = check_array(state, "tokens_P", self.tokens_P, 0, LARGEST)
        self.a_P, self.b_P = a_P, b_P

    def metrics(self) -> dict[str, float]:
        mean, prior = self.a_P / (self.a_P + self.b_P), self.settings.successes + self.settings.failures
        return {
            "posterior/pass_rate": float(mean.mean(dtype=np.float64)),
            "posterior/evidence": float((self.a_P + self.b_P).mean(dtype=np.float64)) - prior,
        }
