"""What a run costs, in tokens and FLOPs: one set of formulas for stock GRPO, for us, for the profile and the forecast.

A decoder's forward pass takes 2 FLOPs per parameter and token, plus causal attention; training is a forward and a
backward pass, three times that (Kaplan et al. 2020, arXiv 2001.08361, table 1). So, per token: generate 2N, score 2N
per pass (old log-probs, reference log-probs), train 6N. N leaves the embedding table and the output head out.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sgpo_verl.errors import SgpoError


@dataclass(frozen=True)
class ModelShape:
    """The part of a decoder's shape that decides its FLOPs.

    parameters: weights of the linear layers that one token passes, embedding table and output head left out.
    attention: layers x heads x head size, the width that attention works on per position.
    """

    parameters: int
    attention: int

    def forward_flops(self, tokens: float, rows: float) -> float:
        """FLOPs of one forward pass: 2 N T + 2 A T s, with s = T / rows.

        tokens: T, over all rows, padding rows included. rows: sequences they are spread over; attention is counted at
        the mean length, which understates it where lengths differ widely (by 1 + variance / mean^2). 0 rows cost 0.
        """
        if rows == 0:
            return 0.0
        return 2.0 * self.parameters * tokens + 2.0 * self.attention * tokens * (tokens / rows)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def shape_from_config(config: dict[str, Any], source: str = "config.json") -> ModelShape:
    """The shape of a Hugging Face model configuration (its ``config.json`` as a dict).

    Dense and mixture-of-experts decoders with gated MLPs (Llama, Qwen2, Qwen3, Mistral, Mixtral, Qwen-MoE, ...); of
    the experts, those that one token is routed to are counted. Vision towers are not.
    Raises SgpoError naming ``source`` and the key where the configuration lacks one that the formula needs.
    """
    try:
        return _shape(config.get("text_config") or config, source)
    except (AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise SgpoError(f"{source}: does not describe a model ({error})") from None


def _shape(config: dict[str, Any], source: str) -> ModelShape:
    try:
        hidden, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
        dense_width = config["intermediate_size"]
    except KeyError as error:
        raise SgpoError(f"{source}: no key {error} - cannot tell the model's FLOPs from it") from None
    head_size = config.get("head_dim") or hidden // heads
    key_value_heads = config.get("num_key_value_heads") or heads
    attention = hidden * head_size * (2 * heads + 2 * key_value_heads)
    experts = config.get("num_experts") or config.get("num_local_experts") or config.get("n_routed_experts") or 0
    if experts:
        width = config.get("moe_intermediate_size") or dense_width
        routed = config.get("num_experts_per_tok")
        if routed is None:
            raise SgpoError(f"{source}: has experts but no num_experts_per_tok - cannot tell the model's FLOPs from it")
        shared = config.get("shared_expert_intermediate_size") or width * (config.get("n_shared_experts") or 0)
        mlp = 3 * hidden * (width * routed + shared) + hidden * experts
    else:
        mlp = 3 * hidden * dense_width
    shape = ModelShape(parameters=layers * (attention + mlp), attention=layers * heads * head_size)
    if shape.parameters <= 0 or shape.attention <= 0:
        raise ValueError("its sizes are not positive")
    return shape


def shape_from_path(model_path: str | Path) -> ModelShape:
    """The shape of the model in a local folder. Raises SgpoError if the folder has no readable ``config.json``."""
    path = Path(model_path) / "config.json"
    try:
        return shape_from_config(json.loads(path.read_text()), str(path))
    except (OSError, ValueError, RecursionError) as error:
        raise SgpoError(f"{path}: cannot read the model's shape ({error})") from None


@dataclass(frozen=True)
class StepTokens:
    """What one training step processed.

    Generated: ``groups`` prompts of ``prompt_tokens`` in all (once per group: the prefix is shared), from them ``rows``
    sequences of ``response_tokens`` in all. Trained: ``trained`` tokens in ``trained_rows`` rows, prompt and response,
    padding rows included. scoring_passes: 1 for old log-probs, 2 with a reference model, 0 where the rollout's own
    log-probs are used (verl's bypass mode). epochs: passes of the update.
    """

    groups: float
    prompt_tokens: float
    rows: float
    response_tokens: float
    trained: float = 0.0
    trained_rows: float = 0.0
    scoring_passes: int = 1
    epochs: int = 1

    @property
    def generated(self) -> float:
        """Tokens that went through the model while sampling."""
        return self.prompt_tokens + self.response_tokens


def generate_flops(shape: ModelShape, step: StepTokens) -> float:
    """FLOPs to sample: 2 N T + 2 A (groups P^2 + rows (2 P R + R^2)), P and R the mean prompt and response lengths.

    A row of length P + R costs 2 A (P + R)^2 of attention, of which the prompt's own 2 A P^2 are paid once per group.
    """
    prompt = step.prompt_tokens / step.groups if step.groups else 0.0
    response = step.response_tokens / step.rows if step.rows else 0.0
    positions = step.groups * prompt**2 + step.rows * (2 * prompt * response + response**2)
    return 2.0 * shape.parameters * step.generated + 2.0 * shape.attention * positions


def step_flops(shape: ModelShape, step: StepTokens) -> tuple[float, float]:
    """(FLOPs to generate, FLOPs to score and train) of one step."""
    forward = shape.forward_flops(step.trained, step.trained_rows)
    return generate_flops(shape, step), (step.scoring_passes + 3 * step.epochs) * forward
