"""Training steps of verl's Megatron engine without a GPU: ``torchrun --nproc-per-node N megatron_step.py SPEC OUT``.

SPEC (torch.save): "arguments" of a run on Megatron; "cases": name, rows as ``rig.rollouts`` makes them, settings under sgpo:,
updates, loss_agg_mode, and whether micro-batches are cut by tokens. What the trainer does between sampling and the worker is
done by the same functions here; Ray and TransferQueue are left out. Writes what each case did to OUT.
"""

import os
import sys
from functools import partial

os.environ.update(
    VERL_PLATFORM="cpu", HF_HUB_OFFLINE="1", VERL_USE_EXTERNAL_MODULES="megatron_cpu", CUDA_DEVICE_MAX_CONNECTIONS="1"
)

import numpy as np
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.engine import EngineRegistry
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import response_from_nested

from sgpo_verl.binding.rows import Rows, micro_batch_group
from sgpo_verl.config import load_settings
from sgpo_verl.minibatches import updates_of
from sgpo_verl.run_config import compose
from sgpo_verl.selection import Sampled, select


def build(config):
    """verl's engine as its worker builds it."""
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    model = omega_conf_to_dataclass(config.actor_rollout_ref.model)
    model.model_type = "language_model"
    parts = {"engine_config": actor.engine, "optimizer_config": actor.optim, "checkpoint_config": actor.checkpoint}
    engine = EngineRegistry.new("language_model", actor.strategy, model_config=model, **parts)
    engine.initialize()
    return engine


def arranged(given: list[dict], settings, ranks: int, updates: int, config) -> tuple[Rows, KVBatchMeta]:
    """As ``SgpoTrainer._balance_batch``, rows in their order; there are enough of them left out to fill up."""
    tags = [{"seq_len": len(row["prompt"]) + len(row["response"])} for row in given]
    batch = KVBatchMeta(partition_id="train", keys=[row["key"] for row in given], tags=tags)
    rewards_N = np.array([row["reward"] for row in given])
    sampled = Sampled(
        rewards_N=rewards_N,
        successes_N=(rewards_N > 0.5).astype(np.int64),
        group_N=np.array([row["uid"] for row in given]),
        prompt_N=np.zeros(len(given), dtype=np.int64),
        tokens_N=np.array([tag["seq_len"] for tag in tags]),
    )
    selection = select(sampled, settings, [0])
    sessions = [row["key"].rpartition("_")[0] for row in given]
    rows = Rows.choose(batch, [sum(row["mask"]) for row in given], selection, sessions, config)
    updates = updates_of(len(rows.kept), updates)
    rows.fill_up(ranks * updates * micro_batch_group(config))
    rows.arrange(rows.kept, ranks, updates)
    return rows, rows.sized(rows.kept, config)


def nested(values: list[list], dtype=torch.int64) -> torch.Tensor:
    return torch.nested.as_nested_tensor([torch.tensor(v, dtype=dtype) for v in values], layout=torch.jagged)


def tensors(given: list[dict], advantages: list[float]) -> TensorDict:
    whole = [row["prompt"] + row["response"] for row in given]
    return TensorDict(
        {
            "prompts": nested([row["prompt"] for row in given]),
            "responses": nested([row["response"] for row in given]),
            "input_ids": nested(whole),
            "position_ids": nested([list(range(len(ids))) for ids in whole]),
            "response_mask": nested([row["mask"] for row in given]),
            "loss_mask": nested([row["mask"] for row in given]),
            "advantages": nested(
                [[a * m for m in row["mask"]] for a, row in zip(advantages, given, strict=True)], torch.float32
            ),
            "temperature": torch.ones(len(given)),
        },
        batch_size=len(given),
    )


def step(engine, case: dict, config) -> dict:
    """Log-probs before the step, then its updates, on the block of rows of this process's data-parallel rank."""
    config.actor_rollout_ref.actor.loss_agg_mode = case["mode"]
    config.actor_rollout_ref.actor.use_dynamic_bsz = False  # for a size by number in any case
    ranks, rank = engine.get_data_parallel_size(), engine.get_data_parallel_rank()
    rows, batch = arranged(case["rows"], load_settings(case["settings"]), ranks, case["updates"], config)
    by_key = {row["key"]: row for row in case["rows"]}
    block = slice(rank * len(batch) // ranks, (rank + 1) * len(batch) // ranks)
    data = tensors([by_key[key] for key in batch.keys[block]], rows.advantages_N(batch)[block].tolist())
    common = {
        "use_dynamic_bsz": case["dynamic"],
        "max_token_len_per_gpu": 40,
        "micro_batch_size_per_gpu": batch.extra_info["micro_batch_size_per_gpu"],
        "global_batch_size": rows.counted / rows.updates,  # what ActorGroup sends
        "calculate_entropy": False,
    }
    tu.assign_non_tensor(data, **common)
    with engine.eval_mode():
        known = engine.infer_batch(data).get("model_output")
    if known:  # in the pipeline's last stage, where the loss is
        data["old_log_probs"] = response_from_nested(known["log_probs"], data["response_mask"])
    loss = partial(ppo_loss, config=omega_conf_to_dataclass(config.actor_rollout_ref.actor))
    cell = len(data) // rows.updates
    micro_batches = []
    for update in range(rows.updates):
        part = tu.index_select_tensor_dict(data, list(range(update * cell, (update + 1) * cell)))
        tu.assign_non_tensor(part, **common)
        with engine.train_mode():
            micro_batches.append(len(engine.train_batch(part, loss).get("loss", [])))
    return {
        **case,
        "keys": list(batch.keys),
        "chosen": rows.advantage,
        "counted": set(rows.loss_tokens),
        "updates": rows.updates,
        "micro_batches": micro_batches,
        "weights": {name: tensor.clone() for name, tensor in engine.get_per_tensor_param()[0]},
    }


def main(spec_file: str, out: str) -> None:
    spec = torch.load(spec_file, weights_only=False)
    config = OmegaConf.create(compose(spec["arguments"]))
    engine, done = build(config), []
    path = config.actor_rollout_ref.model.path
    start = {name: tensor.clone() for name, tensor in engine.get_per_tensor_param()[0]}
    for case in spec["cases"]:
        engine.bridge.load_weights(engine.module, path)
        done.append(step(engine, case, config))
    if engine.is_mp_src_rank_with_outputs() and engine.get_data_parallel_rank() == 0:
        torch.save({"start": start, "cases": done}, out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("cpu:gloo")
    main(sys.argv[1], sys.argv[2])
