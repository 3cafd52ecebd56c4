"""verl's Megatron path without a GPU: configuration, learning-rate schedule, who gets which rows, how they are cut.

What the engine itself does with a step is in test_megatron_engine.py.
"""

import math

import pytest
import tiny
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from transfer_queue import BatchMeta, KVBatchMeta
from verl.single_controller.base import WorkerGroup
from verl.single_controller.base.decorator import dispatch_nd_compute_dataproto
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.engine.utils import prepare_micro_batches

from sgpo_verl.binding.actor_group import ranks_of
from sgpo_verl.binding.rows import Rows, micro_batch_group
from sgpo_verl.minibatches import updates_of
from sgpo_verl.run_config import check_supported, compose, numbers_of

ASKED = [["model_engine=megatron"], ["--config-name=ppo_megatron_trainer"]]
MEGATRON = "actor_rollout_ref.actor.megatron"


def megatron(folder, asked=ASKED[0], **more):
    """The configuration of a run on Megatron, as verl's main composes it."""
    settings = {"+runtime": None, "algorithm.adv_estimator": None, **more}
    return OmegaConf.create(compose([*asked, *tiny.overrides(folder, **settings)]))


def flat(node, at=""):
    if not isinstance(node, dict):
        return {at: node}
    return {key: value for name, inner in node.items() for key, value in flat(inner, f"{at}.{name}").items()}


@pytest.mark.parametrize("asked", ASKED, ids=["model_engine", "config name"])
@pytest.mark.parametrize("method", ["paper", "prune", "greso", "aero", "bayes"])
def test_one_word_changes_nothing_of_megatrons_configuration(folder, asked, method):
    stock, ours = megatron(folder, asked), megatron(folder, asked, **{"+sgpo": method})
    check_supported(OmegaConf.to_container(ours, resolve=True))
    before, after = flat(OmegaConf.to_container(stock, resolve=True)), flat(OmegaConf.to_container(ours, resolve=True))
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    named = {".algorithm.adv_estimator", ".trainer.v1.trainer_mode"}
    if method == "aero":
        named.add(".actor_rollout_ref.rollout.agent.agent_loop_manager_class")
    assert {key for key in changed if not key.startswith(".sgpo.")} == named
    assert ours.actor_rollout_ref.actor.strategy == ours.actor_rollout_ref.ref.strategy == "megatron"
    assert ours.actor_rollout_ref.actor._target_ == "verl.workers.config.McoreActorConfig"


@pytest.fixture
def planned(folder, tmp_path):
    """Our trainer, built from Megatron's configuration, up to the plan; no worker is started."""
    more = {
        "+sgpo": "bayes",
        "trainer.total_training_steps": 12,
        "trainer.default_local_dir": tmp_path,
        f"{MEGATRON}.tensor_model_parallel_size": 2,
        f"{MEGATRON}.pipeline_model_parallel_size": 2,
        "actor_rollout_ref.actor.optim.lr_decay_style": "cosine",
        "data.dataloader_num_workers": 0,
        "data.filter_overlong_prompts_workers": 1,
    }
    trainer = get_trainer_cls("sgpo_sync")(megatron(folder, **more))
    trainer._init_tokenizer()
    trainer._init_dataloader()
    return trainer


def test_the_plans_steps_reach_megatrons_optimizer(planned):
    assert planned.total_training_steps == 12
    actor = omega_conf_to_dataclass(planned.config.actor_rollout_ref.actor)
    assert type(actor).__name__ == "McoreActorConfig"
    assert actor.optim.total_training_steps == 12
    assert (actor.engine.tensor_model_parallel_size, actor.engine.pipeline_model_parallel_size) == (2, 2)


def test_megatrons_schedule_ends_with_the_plan(planned):
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    from verl.utils.megatron.optimizer import get_megatron_optimizer_param_scheduler

    optim = omega_conf_to_dataclass(planned.config.actor_rollout_ref.actor).optim
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=optim.lr)
    schedule = get_megatron_optimizer_param_scheduler(optimizer, optim)
    rates = []
    for _ in range(12):  # one a step, as verl's worker calls it after the last update of a step
        schedule.step(1)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([optim.lr * 0.5 * (1 + math.cos(math.pi * step / 12)) for step in range(1, 13)])


def dispatched(world, tp, pp, cp):
    """The data-parallel rank of every worker, as Megatron lays them out."""
    parallel_state = pytest.importorskip("megatron.core.parallel_state", reason="megatron-core is not installed")
    dp = world // (tp * pp * cp)
    ranks = parallel_state.RankGenerator(tp=tp, ep=1, dp=dp, pp=pp, cp=cp, order="tp-cp-ep-dp-pp")
    place = {rank: group.index(rank) for group in ranks.get_ranks("dp") for rank in group}
    return [place[rank] for rank in range(world)]


@pytest.mark.parametrize(
    ("world", "tp", "pp", "cp", "ranks"),
    [(8, 1, 1, 1, 8), (8, 2, 1, 1, 4), (8, 2, 2, 1, 2), (8, 2, 2, 2, 1), (16, 2, 2, 2, 2), (12, 1, 4, 1, 3)],
)
def test_rows_go_to_data_parallel_ranks_whatever_shares_a_model(monkeypatch, world, tp, pp, cp, ranks):
    monkeypatch.setattr("verl.utils.ray_utils.parallel_put", lambda parts, max_workers: parts)  # no object store here
    mapping = dispatched(world, tp, pp, cp)
    group = WorkerGroup(None)
    group._workers, group._dispatch_info["actor"] = [None] * world, mapping
    assert ranks_of(group) == ranks == world // (tp * pp * cp)
    # As verl's dispatch gets them: it asks TransferQueue for the indexes of a KVBatchMeta's keys, in their order, then cuts.
    rows = list(range(6 * ranks))
    batch = BatchMeta(global_indexes=rows, partition_ids=["train"] * len(rows))
    [parts], _ = dispatch_nd_compute_dataproto(mapping, ranks, group, batch)
    assert len(parts) == world
    for rank, part in zip(mapping, parts, strict=True):  # every worker of a model the same rows: its rank's block
        assert part.global_indexes == rows[6 * rank : 6 * rank + 6]
    # spread_padding and Rows.advantages_N take block r, part m for the m-th update of rank r
    assert sorted({row for part in parts for row in part.global_indexes}) == rows


def interleaved(folder, stages, chunks, **more):
    more = {
        f"{MEGATRON}.pipeline_model_parallel_size": stages,
        f"{MEGATRON}.virtual_pipeline_model_parallel_size": chunks,
        **more,
    }
    return megatron(folder, **{"+sgpo": "prune", **more})


def test_micro_batches_come_in_groups_only_where_the_pipeline_is_interleaved(folder):
    assert micro_batch_group(OmegaConf.create(compose(tiny.overrides(folder)))) == 1  # FSDP2
    assert micro_batch_group(megatron(folder)) == 1
    assert micro_batch_group(interleaved(folder, stages=4, chunks="null")) == 1
    assert micro_batch_group(interleaved(folder, stages=4, chunks=1)) == 1
    assert micro_batch_group(interleaved(folder, stages=4, chunks=2)) == 4
    given = {f"+{MEGATRON}.override_transformer_config.microbatch_group_size_per_vp_stage": 6}
    assert micro_batch_group(interleaved(folder, stages=4, chunks=2, **given)) == 6


@pytest.mark.parametrize("dynamic", [True, False], ids=["by tokens", "by number"])
@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize(("ranks", "planned_updates"), [(1, 1), (2, 2), (3, 4)])
def test_however_many_rows_are_kept_verl_can_cut_them_into_micro_batches(
    folder, ranks, planned_updates, stages, dynamic
):
    more = {
        "actor_rollout_ref.actor.use_dynamic_bsz": dynamic,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 4,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 4,
    }
    config = interleaved(folder, stages, chunks=2 if stages > 1 else "null", **more)
    for kept in range(1, 41):
        updates = updates_of(kept, planned_updates)
        multiple = ranks * updates * stages
        keys = [f"u{i}_0_0" for i in range(kept + -kept % multiple)]  # verl pads up to the multiple
        batch = KVBatchMeta(partition_id="train", keys=keys, tags=[{"seq_len": 3 + i % 7} for i in range(len(keys))])
        rows = Rows.choose(batch, [1] * len(keys), None, [], config)
        rows.arrange(batch, ranks, updates)
        size = rows.sized(batch, config).extra_info.get("micro_batch_size_per_gpu")
        for of_rank in (
            len(keys) // ranks,
            len(keys) // ranks // updates,
        ):  # all its rows for log-probs, then an update's
            data = packed([3 + i % 7 for i in range(of_rank)])
            tu.assign_non_tensor(data, use_dynamic_bsz=dynamic, micro_batch_size_per_gpu=size, max_token_len_per_gpu=20)
            cut, _ = prepare_micro_batches(data, num_batches_divided_by=stages if stages > 1 else None)
            assert len(cut) % stages == 0
            assert sum(map(len, cut)) == of_rank
            assert dynamic or all(len(part) <= 4 for part in cut)


def packed(lengths):
    ids = torch.nested.as_nested_tensor([torch.ones(n, dtype=torch.int64) for n in lengths], layout=torch.jagged)
    return TensorDict({"input_ids": ids}, batch_size=len(lengths))


def test_the_baselines_batch_is_counted_in_prompts_whatever_the_parallel_sizes(folder):
    config = interleaved(folder, 2, 2, **{f"{MEGATRON}.tensor_model_parallel_size": 2})
    numbers = numbers_of(OmegaConf.to_container(config, resolve=True))
    assert (numbers.train_batch_size, numbers.rollout_n, numbers.updates_per_step) == (8, 8, 2)
