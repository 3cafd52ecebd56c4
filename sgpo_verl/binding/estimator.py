"""Advantage estimator ``sgpo``: the core's group-relative advantage as a function of verl's batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from verl.trainer.ppo.core_algos import register_adv_est

from sgpo_verl import advantage

# verl hands an estimator rows and uids, not which rows are outputs of one session; our trainer leaves the keys here.
_batch_keys: ContextVar[Sequence[str] | None] = ContextVar("sgpo_batch_keys", default=None)
_known_N: ContextVar[np.ndarray | None] = ContextVar("sgpo_known_advantages", default=None)


@contextmanager
def rows_are(batch_keys: Sequence[str], advantages_N: np.ndarray | None = None) -> Iterator[None]:
    """While it lasts, row i of the estimator's input is ``batch_keys[i]``: "{uid}_{session}_{output}".

    advantages_N: those of the rows, if they were computed before some rows of their groups were left out.
    """
    keys_token, known_token = _batch_keys.set(batch_keys), _known_N.set(advantages_N)
    try:
        yield
    finally:
        _batch_keys.reset(keys_token)
        _known_N.reset(known_token)


def last_output_rows(batch_keys: Sequence[str]) -> np.ndarray:
    """For every row, the row of its session's last output (N,): that one is scored, and speaks for all of them."""
    last: dict[str, tuple[int, int]] = {}
    sessions = []
    for row, key in enumerate(batch_keys):
        session, _, output = key.rpartition("_")
        sessions.append(session)
        last[session] = max(last.get(session, (-1, -1)), (int(output), row))
    return np.array([last[session][1] for session in sessions])


def session_advantages(rewards_N: np.ndarray, uid_N: np.ndarray, last_N: np.ndarray, normalize: bool) -> np.ndarray:
    """Advantages, float64 (N,): one for each session, from the reward of its last output, the same for all its outputs.

    rewards_N, uid_N: per row. last_N: as from ``last_output_rows``.
    """
    speaking = np.unique(last_N)
    advantages_N = np.zeros(len(rewards_N))
    advantages_N[speaking] = advantage.grpo(rewards_N[speaking], uid_N[speaking], normalize)
    return advantages_N[last_N]


@register_adv_est("sgpo")
def compute_sgpo_advantage(
    token_level_rewards: torch.Tensor, response_mask: torch.Tensor, index: np.ndarray, config=None, **kwargs
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns, both (N, T), of outcome rewards in groups of any size.

    token_level_rewards, response_mask: (N, T). index: uid per row (N,), equal for the rollouts of one group.
    config.norm_adv_by_std_in_grpo: as in verl's ``grpo``. Padding rows share one uid and have an empty mask: they get 0.
    """
    advantages_N, keys = _known_N.get(), _batch_keys.get()
    if advantages_N is None:
        rewards_N = token_level_rewards.sum(dim=-1).double().cpu().numpy()
        normalize = True if config is None else config.get("norm_adv_by_std_in_grpo", True)
        last_N = np.arange(len(rewards_N)) if keys is None else last_output_rows(keys)
        advantages_N = session_advantages(rewards_N, np.asarray(index), last_N, normalize)
    scalar = torch.from_numpy(advantages_N).to(token_level_rewards)
    advantages = scalar.unsqueeze(-1) * response_mask
    return advantages, advantages
