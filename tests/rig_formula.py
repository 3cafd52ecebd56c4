"""A training step from the formula, in one process: what the rig's workers must arrive at.

Loss of a mini-batch: sum over rows and tokens of -min(r A, clip(r, 0.8, 1.2) A) (for A < 0 at most 3 |A|), with r the ratio
of the token's probability to that before the step; then, by mode, over
    token-mean: the mini-batch's own tokens, rows that were left out counted as dealt evenly over the mini-batches
    token-sum: nothing
    seq-mean-*: the step's rollouts / its updates; token-mean divides every row by its own tokens first, token-sum-norm by
    the horizon.
One SGD update for each mini-batch. Rows that AERO rejects are in no denominator.
"""

import statistics
from pathlib import Path

import torch
from rig import HORIZON, KL_COEFFICIENT, LEARNING_RATE

torch.set_num_threads(1)  # matrices are small: two threads wait for each other, the longer the busier the machine


def advantages(rows: list[dict]) -> dict[str, float]:
    """By key: (r - mean) / (std + 1e-6), 0 where a group's rewards are all equal."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(row["uid"], []).append(row["reward"])
    result = {}
    for row in rows:
        rewards = groups[row["uid"]]
        same = len(set(rewards)) == 1
        result[row["key"]] = (
            0.0 if same else (row["reward"] - statistics.mean(rewards)) / (statistics.stdev(rewards) + 1e-6)
        )
    return result


def mini_batches(keys: list[str], ranks: int, updates: int) -> list[list[str]]:
    """Rows of each update: the m-th part of every rank's block."""
    block = len(keys) // ranks
    cell = block // updates
    return [[key for r in range(ranks) for key in keys[r * block + m * cell :][:cell]] for m in range(updates)]


def step(case: dict, ranks: int, start: dict[str, torch.Tensor], model_path: Path) -> dict[str, torch.Tensor]:
    from transformers import LlamaForCausalLM

    reference = LlamaForCausalLM.from_pretrained(model_path)
    model = LlamaForCausalLM.from_pretrained(model_path)
    model.load_state_dict(start, strict=False)
    model.tie_weights()
    rows = {row["key"]: row for row in case["rows"]}
    advantage = case["chosen"] or advantages(case["rows"])  # what is chosen, and why, is tested in test_selection.py
    old = {key: log_probs(model, row).detach() for key, row in rows.items()}
    left_out = [row for key, row in rows.items() if key not in case["keys"] and key in case["counted"]]
    updates = case["updates"]
    for keys in mini_batches(case["keys"], ranks, updates):
        real = [key for key in keys if key in rows]
        tokens = sum(sum(rows[key]["mask"]) for key in real) + sum(sum(row["mask"]) for row in left_out) / updates
        loss = torch.tensor(0.0)
        for key in real:
            mask = torch.tensor(rows[key]["mask"], dtype=torch.float32)
            now, given = log_probs(model, rows[key]), advantage[key]
            ratio = torch.exp(now - old[key])
            per_token = torch.maximum(-given * ratio, -given * ratio.clamp(0.8, 1.2))
            if given < 0:
                per_token = torch.minimum(per_token, torch.tensor(-given * 3.0))
            if case["kl"]:
                per_token = per_token + KL_COEFFICIENT * 0.5 * (now - log_probs(reference, rows[key]).detach()) ** 2
            loss = loss + row_loss(
                case["mode"], (per_token * mask).sum(), mask.sum(), tokens, len(case["counted"]) / updates
            )
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= LEARNING_RATE * parameter.grad
    return {name: tensor for name, tensor in model.state_dict().items() if name in start}


def row_loss(mode: str, total, own_tokens, tokens: float, rollouts: float):
    """A row's share of the loss. total: over its tokens. tokens, rollouts: denominators."""
    return {
        "token-mean": total / tokens,
        "token-sum": total,
        "seq-mean-token-sum": total / rollouts,
        "seq-mean-token-mean": total / own_tokens / rollouts,
        "seq-mean-token-sum-norm": total / rollouts / HORIZON,
    }[mode]


def log_probs(model, row: dict) -> torch.Tensor:
    """Of the response's tokens, (T,)."""
    ids = torch.tensor([row["prompt"] + row["response"]])
    logits = model(input_ids=ids).logits[0, len(row["prompt"]) - 1 : -1]
    return torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(row["response"]).unsqueeze(1)).squeeze(1)
