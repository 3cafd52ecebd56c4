"""One training step of verl on rollouts that the test made up: ``python rig.py FOLDER RANKS OUT``.

Everything from the replay buffer on is real: TransferQueue, verl's trainer and ours on top of it, Ray workers with FSDP2
over gloo, verl's losses. Sampling alone is left out, so that a step can be repeated on the same rows, by stock verl and by
us, and recomputed from the formula. Writes what every case did to OUT (torch.save).
"""

import itertools
import os
import random
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

os.environ.update(VERL_PLATFORM="cpu", HF_HUB_OFFLINE="1", TRANSFER_QUEUE_ENABLE="1", RAY_DISABLE_IMPORT_WARNING="1")

import ray
import tiny
import torch
import transfer_queue as tq
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transfer_queue import KVBatchMeta
from verl.trainer.constants_ppo import get_ppo_ray_runtime_env
from verl.trainer.ppo.v1 import PPOTrainerSync, get_trainer_cls, trainer_base
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.workers.utils.losses import ppo_loss

from sgpo_verl.metrics import StepTotals
from sgpo_verl.run_config import compose

LEARNING_RATE = 0.5
HORIZON = 8  # loss_scale_factor of seq-mean-token-sum-norm
KL_COEFFICIENT = 0.3
MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")


def overrides(folder: Path, ranks: int, **more) -> list[str]:
    """Of a run on FSDP2; ``more`` for another engine."""
    dynamic = ranks == 1  # with several ranks, the other way of cutting micro-batches
    settings = {
        "algorithm.adv_estimator": None,
        "+sgpo": "paper",
        "sgpo.profile.path": folder / "profile.parquet",
        "trainer.total_training_steps": 1000,
        "trainer.n_gpus_per_node": ranks,
        "trainer.resume_mode": "disable",
        "actor_rollout_ref.rollout.calculate_log_probs": False,
        "trainer.default_local_dir": folder / "checkpoints",
        "actor_rollout_ref.actor.optim.lr": LEARNING_RATE,
        "+actor_rollout_ref.actor.optim.optimizer": "SGD",
        "actor_rollout_ref.actor.optim.weight_decay": 0,
        "actor_rollout_ref.actor.optim.clip_grad": 1e9,
        "actor_rollout_ref.actor.use_kl_loss": True,
        "actor_rollout_ref.actor.kl_loss_coef": KL_COEFFICIENT,
        "actor_rollout_ref.actor.kl_loss_type": "mse",
        "actor_rollout_ref.actor.checkpoint.save_contents": "[model,optimizer,extra,hf_model]",
        "actor_rollout_ref.actor.use_dynamic_bsz": dynamic,
        "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz": dynamic,
        "actor_rollout_ref.ref.log_prob_use_dynamic_bsz": dynamic,
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 160,  # padding rows have 128
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 4,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 4,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 4,
        **more,
    }
    arguments = tiny.overrides(folder, **settings)
    return [
        a.replace("+actor_rollout_ref.actor.optim.optimizer", "actor_rollout_ref.actor.optim.optimizer")
        for a in arguments
    ]


def rollouts(sizes: list[int], correct: list[int], seed: int = 0) -> list[dict]:
    """Rows of groups of these sizes, of which so many have a reward of 1; lengths and tokens at random."""
    rng = random.Random(seed)
    rows = []
    for group, (size, right) in enumerate(zip(sizes, correct, strict=True)):
        prompt = [rng.randrange(2, 14) for _ in range(rng.randrange(3, 9))]
        for session in range(size):
            response = [rng.randrange(2, 14) for _ in range(rng.randrange(1, 8))] + [1]
            # a tool's tokens in the middle of a long answer are not the model's own
            mask = [0 if len(response) > 5 and i == 2 else 1 for i in range(len(response))]
            rows.append(
                {
                    "uid": f"u{group}",
                    "key": f"u{group}_{session}_0",
                    "prompt": prompt,
                    "response": response,
                    "mask": mask,
                    "reward": float(session < right),
                }
            )
    return rows


# name -> (group sizes, how many succeed in each, settings, optimizer updates)
BATCHES = {
    "equal": ([8] * 4, [3, 0, 8, 5], {}, (1, 2)),
    "ragged": ([2, 2, 4, 8, 16], [1, 2, 1, 3, 0], {}, (1, 2)),
    "padded": ([2, 2, 4, 8, 8, 3, 4], [1, 2, 1, 3, 0, 1, 2], {"unit": "prompts"}, (1, 2)),
    "pruned": ([2, 2, 4, 8, 16], [1, 2, 1, 3, 0], {"prune": True}, (1, 2)),
    "nearly all pruned": ([2, 2, 4, 8, 16], [1, 2, 4, 8, 0], {"prune": True}, (1, 2)),
    "rejected": ([2, 2, 4, 8, 16], [1, 2, 1, 3, 0], {"advantage": "aero"}, (1, 2)),
    "thinned": ([2, 2, 4, 8, 16], [1, 2, 1, 3, 0], {"train_fraction": 0.4}, (1, 2)),
    "all pruned": ([2, 2, 4, 8, 16], [0, 2, 4, 8, 0], {"prune": True}, (1,)),
}


class GivenRollouts:
    """In place of the replay buffer: these rows, as an agent loop would have put them."""

    def __init__(self):
        self.rows = []

    def sample(self, global_steps, partition_id, batch_size):
        fields, tags = [], []
        for row in self.rows:
            prompt, response, mask = (torch.tensor(row[name]) for name in ("prompt", "response", "mask"))
            rewards = torch.zeros(len(response))
            rewards[-1] = row["reward"]
            fields.append(
                {
                    "prompts": prompt,
                    "responses": response,
                    "input_ids": torch.cat([prompt, response]),
                    "position_ids": torch.arange(len(prompt) + len(response)),
                    "response_mask": mask,
                    "loss_mask": mask,
                    "rm_scores": rewards,
                    "uid": row["uid"],
                    "extra_fields": {"reward_extra_info": {}},
                    "num_turns": 2,
                    "sgpo_prompt": 0,
                }
            )
            lengths = {"prompt_len": len(prompt), "response_len": len(response), "seq_len": len(prompt) + len(response)}
            tags.append(
                {"status": "success", "global_steps": 1, "min_global_steps": 0, "max_global_steps": 0, **lengths}
            )
        keys = [row["key"] for row in self.rows]
        tq.kv_batch_put(keys=keys, partition_id="train", fields=list_of_dict_to_tensordict(fields), tags=tags)
        return KVBatchMeta(partition_id="train", keys=keys, tags=tags), {}


def build(config):
    """Our trainer with its workers, without rollout servers; and stock verl's trainer over the same workers."""

    class Servers:
        get_replicas = staticmethod(list)
        create = classmethod(lambda cls, **kwargs: cls())

    trainer_base.LLMServerManager = Servers
    trainer_base.RewardLoopManager = lambda **kwargs: SimpleNamespace(reward_loop_worker_handles=[])
    ours = get_trainer_cls("sgpo_sync")(config)
    ours.on_init_end = ours.on_sample_end = lambda: None
    ours.init()
    ours.global_steps = 1
    ours._totals = StepTotals()
    ours.replay_buffer = GivenRollouts()
    stock = object.__new__(PPOTrainerSync)
    stock.__dict__.update(ours.__dict__, trainer_mode="sync")
    return ours, stock


class Rig:
    def __init__(self, folder: Path, arguments: list[str]):
        config = OmegaConf.create(compose(arguments))
        environment = OmegaConf.merge(get_ppo_ray_runtime_env(config), {"env_vars": {"TRANSFER_QUEUE_ENABLE": "1"}})
        started = OmegaConf.to_container(config.ray_kwargs.ray_init) | {
            "runtime_env": OmegaConf.to_container(environment)
        }
        ray.init(**started)
        config.transfer_queue.enable = True
        tq.init(config.transfer_queue)
        self.folder, self.config, self.cases = folder, config, []
        self.ours, self.stock = build(config)
        # away from the reference model, else a KL loss has no gradient
        self.train(self.ours, *BATCHES["equal"][:3], updates=1, mode="token-mean", kl=False, seed=5)
        self.ours.actor_rollout_wg.save_checkpoint(str(folder / "start"), None, 1)
        self.start = self.weights()

    def weights(self) -> dict[str, torch.Tensor]:
        place = self.folder / "weights"
        self.ours.actor_rollout_wg.save_checkpoint(str(place), None, 1)
        [file] = place.rglob("*.safetensors")
        return load_file(file)

    def train(self, trainer, sizes, correct, settings, updates, mode, kl, seed=0) -> dict:
        """One step, from wherever the weights are."""
        config, actor = self.config, self.config.actor_rollout_ref.actor
        actor.loss_agg_mode, actor.loss_scale_factor, actor.use_kl_loss = mode, HORIZON, kl
        actor.ppo_mini_batch_size = config.data.train_batch_size // updates
        if trainer is self.stock:  # which counts in prompts of rollout.n
            config.data.train_batch_size, actor.ppo_mini_batch_size = len(sizes), len(sizes) // updates
        trainer.use_reference_policy = kl
        trainer.actor_rollout_wg.set_loss_fn(partial(ppo_loss, config=omega_conf_to_dataclass(actor)))
        session = self.ours.sgpo
        numbers = session.plan.numbers.__class__(8, 8, 8 // updates, total_training_steps=1000)
        self.ours.sgpo = replaced(session, numbers, settings)
        trainer.replay_buffer.rows = rollouts(sizes, correct, seed)
        metrics: dict = {}
        batch = trainer._step_once(metrics, {}, len(sizes))
        data = tq.kv_batch_get(keys=batch.keys, partition_id="train", select_fields=["advantages"])
        advantages = {key: row.tolist() for key, row in zip(batch.keys, data["advantages"].unbind(), strict=True)}
        tq.kv_clear(keys=batch.keys, partition_id="train")
        trained = (
            batch.keys if trainer is self.stock else [k for k in batch.keys if k not in self.ours._rows.left_out.keys]
        )
        return {
            "keys": trained,
            "padding": [key for key in trained if key.startswith("pad")],
            "advantages": advantages,
            "metrics": {k: v for k, v in metrics.items() if k.startswith("actor/")},
            "rows": trainer.replay_buffer.rows,
            "chosen": None if trainer is self.stock else self.ours._rows.advantage,
            "counted": None if trainer is self.stock else set(self.ours._rows.loss_tokens),
            "updates": getattr(self.ours, "_updates", updates) if trainer is self.ours else updates,
        }

    def case(self, name: str, who: str, updates: int, mode: str, kl: bool) -> None:
        sizes, correct, settings, _ = BATCHES[name]
        self.ours.actor_rollout_wg.load_checkpoint(str(self.folder / "start"))
        done = self.train(getattr(self, who), sizes, correct, settings, updates, mode, kl)
        self.cases.append(
            {"name": name, "who": who, "planned": updates, "mode": mode, "kl": kl, **done, "weights": self.weights()}
        )


def replaced(session, numbers, settings):
    """The session with another plan's numbers, and these of its settings."""
    from dataclasses import replace

    defaults = {"prune": False, "advantage": "grpo", "train_fraction": 1.0}
    given = session.settings.model_copy(update={name: settings.get(name, old) for name, old in defaults.items()})
    return replace(session, settings=given, plan=replace(session.plan, numbers=numbers))


def main(folder: Path, ranks: int, out: Path) -> None:
    rig = Rig(folder, overrides(folder, ranks))
    for name, (_, _, _, updates) in BATCHES.items():
        for number, mode in itertools.product(updates, MODES):
            rig.case(name, "ours", number, mode, False)
    for number, mode, kl in itertools.product((1, 2), MODES, (False, True)):
        rig.case("equal", "stock", number, mode, kl)
        if kl:
            rig.case("equal", "ours", number, mode, kl)
            rig.case("padded", "ours", number, mode, kl)
    torch.save({"ranks": ranks, "start": rig.start, "cases": rig.cases}, out)
    tq.close()
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
