"""The thin twins in verl, piece by piece, on verl's own classes."""

import gc
import weakref

import datasets
import numpy as np
import pyarrow as pa
import pytest
import tiny
import torch
from omegaconf import OmegaConf
from tensordict import NonTensorData, NonTensorStack, TensorDict
from transfer_queue import KVBatchMeta
from transformers import AutoTokenizer, LlamaConfig, Qwen2Config, Qwen3Config
from verl.trainer.ppo.utils import create_rl_dataset
from verl.utils.flops_counter import FlopsCounter

from sgpo_verl.binding.dataloader import PROMPT, ROLLOUT_N, CurriculumDataLoader, identify_dataset
from sgpo_verl.binding.outcomes import rollouts_of, sampled_of, tokens_of
from sgpo_verl.binding.session import Session
from sgpo_verl.config import Settings, load_settings
from sgpo_verl.cost import shape_from_config
from sgpo_verl.errors import SgpoError
from sgpo_verl.methods.base import Outcome
from sgpo_verl.metrics import Ledger, StepRollouts
from sgpo_verl.plan import make_plan
from sgpo_verl.profile import load_profile
from sgpo_verl.run_config import compose
from sgpo_verl.schedule import RunNumbers
from sgpo_verl.selection import outcomes_of

NUMBERS = RunNumbers(train_batch_size=8, rollout_n=8, mini_batch_size=4, total_training_steps=6)


def sampled(scores, infos, prompts):
    """What TransferQueue hands back for a batch: nested scores, non-tensor columns."""
    return TensorDict(
        {
            "rm_scores": torch.nested.as_nested_tensor(
                [torch.tensor([0.0] * i + [s]) for i, s in enumerate(scores)], layout=torch.jagged
            ),
            "extra_fields": NonTensorStack(*[NonTensorData({"reward_extra_info": info}) for info in infos]),
            "sgpo_prompt": NonTensorStack(*[NonTensorData(p) for p in prompts]),
        },
        batch_size=len(scores),
    )


def outcomes(keys, data, *name_of):
    batch = KVBatchMeta(partition_id="train", keys=keys, tags=[{"seq_len": 10 + i} for i in range(len(keys))])
    return outcomes_of(sampled_of(batch, data, Settings(), *name_of)[0])


def test_outcomes_count_successes_per_group():
    keys = ["a_0_0", "b_0_0", "a_1_0", "b_1_0"]
    data = sampled([1.0, 0.0, 0.0, 0.0], [{}] * 4, [5, 6, 5, 6])
    # rows 0 and 2 are of prompt 5, with 10 and 12 tokens; 1 and 3 of prompt 6, with 11 and 13
    assert outcomes(keys, data) == [Outcome(5, 2, 1, 0.5, 11.0, False), Outcome(6, 2, 0, 0.0, 12.0, True)]


def test_rollouts_are_in_the_order_of_their_prompts_whatever_the_order_in_which_they_finished():
    keys = ["b_1_0", "a_0_0", "b_0_0", "a_10_0", "a_9_0"]
    data = sampled([0.0, 1.0, 0.0, 2.0, 3.0], [{}] * 5, [6, 5, 6, 5, 5])
    batch = KVBatchMeta(partition_id="train", keys=keys, tags=[{"seq_len": 1}] * 5)
    found, sessions = sampled_of(batch, data, Settings())
    assert sessions == ["a_0", "a_9", "a_10", "b_0", "b_1"]
    assert found.rewards_N.tolist() == [1.0, 3.0, 2.0, 0.0, 0.0]
    assert found.group_N.tolist() == ["a", "a", "a", "b", "b"]
    assert found.prompt_N.tolist() == [5, 5, 5, 6, 6]


def test_outcomes_take_acc_before_the_score_and_the_last_output_of_a_session():
    keys = ["a_0_0", "a_0_1", "a_1_0"]
    data = sampled([9.0, -1.0, -1.0], [{"acc": 1.0}, {"acc": True}, {"acc": 0.0}], [5] * 3)
    assert outcomes(keys, data) == [Outcome(5, 2, 1, -1.0, 11.5, True)]  # rows 1 and 2 speak: 11 and 12 tokens


def test_a_nan_reward_in_training_names_its_prompt():
    data = sampled([float("nan"), 0.0], [{}] * 2, [1] * 2)
    with pytest.raises(SgpoError, match="NaN for a rollout of prompt gsm8k:17"):
        outcomes(["a_0_0", "a_1_0"], data, ["gsm8k:16", "gsm8k:17"].__getitem__)


def test_tokens_count_each_prompt_once_per_group_and_padding_rows_as_trained():
    def tag(prompt, response, **more):
        return {"prompt_len": prompt, "response_len": response, "seq_len": prompt + response, **more}

    sampled = KVBatchMeta(
        partition_id="train", keys=["a_0_0", "a_1_0", "b_0_0"], tags=[tag(10, 5), tag(10, 7), tag(20, 3)]
    )
    trained = KVBatchMeta(
        partition_id="train",
        keys=["a_0_0", "b_0_0", "pad1_0_0"],
        tags=[tag(10, 5), tag(20, 3), tag(127, 1, is_padding=True)],
    )
    tokens = tokens_of(sampled, trained, NUMBERS)
    # prompts 10 + 20 once each; responses 5 + 7 + 3; trained 15 + 23 + 128
    assert (tokens.groups, tokens.prompt_tokens, tokens.rows, tokens.response_tokens) == (2, 30, 3, 15)
    assert (tokens.trained, tokens.trained_rows) == (166, 3)
    assert rollouts_of(sampled, trained) == StepRollouts(generated=3, trained=2, padding=1)


def test_outputs_of_one_session_are_one_rollout():
    rows = KVBatchMeta(partition_id="train", keys=["a_0_0", "a_0_1", "a_1_0"], tags=[{}, {}, {}])
    assert rollouts_of(rows, rows.select_keys(["a_0_0", "a_0_1"])) == StepRollouts(generated=2, trained=1)


@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen2Config, Qwen3Config])
def test_training_flops_are_verls_less_the_embeddings(config_class):
    config = config_class(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=1000,
    )
    lengths = [128] * 10
    verls = FlopsCounter(config).estimate_flops(lengths, delta_time=1.0)[0] * 1e12
    ours = 3 * shape_from_config(config.to_dict()).forward_flops(sum(lengths), len(lengths))
    # verl counts the embedding table and the output head, 2 x vocabulary x width, at 6 FLOPs per token and weight
    assert ours == pytest.approx(verls - 6 * 2 * 1000 * 64 * sum(lengths), rel=1e-12)


@pytest.fixture
def loader(folder):
    """(a curriculum dataloader over the real dataset, its plan)."""
    arguments = tiny.overrides(folder, **{"algorithm.adv_estimator": None, "+sgpo": "paper"})
    config = OmegaConf.create(compose(arguments))
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    dataset = create_rl_dataset(config.data.train_files, config.data, tokenizer, None)
    prompts = identify_dataset(dataset, "error")
    profile = load_profile(tiny.make_profile(folder, [8] * 12 + [4] * 20 + [1] * 8 + [0] * 8, arguments))

    def make(settings=None):
        plan = make_plan(profile.align(prompts.keys_P), load_settings(settings or {}), NUMBERS).plan
        return CurriculumDataLoader(dataset, prompts, plan.start()[0], Ledger())

    return make


def test_a_batch_carries_rows_sizes_and_identities_that_belong_together(loader):
    dataloader = loader()
    batch = dataloader.next_batch(64)
    assert list(batch[ROLLOUT_N]) == [2] * 32
    assert len(set(batch["uid"])) == 32
    keys_P = dataloader.prompts.keys_P
    for position, index in zip(batch[PROMPT], batch["index"], strict=True):
        assert keys_P[position] == f"sums:{index}"


def test_state_restores_into_a_new_loader_and_the_next_draws_are_equal(loader):
    first = loader()
    for _ in range(4):
        first.next_batch(64)
    first.parts["ledger"].flops_train = 7.0
    second = loader()
    second.load_state_dict(first.state_dict())
    assert second.parts["ledger"] == first.parts["ledger"]
    for _ in range(10):
        a, b = first.next_batch(64), second.next_batch(64)
        assert np.array_equal(a[PROMPT], b[PROMPT]) and np.array_equal(a[ROLLOUT_N], b[ROLLOUT_N])


def test_a_stock_checkpoint_and_one_of_another_plan_are_refused(loader):
    with pytest.raises(SgpoError, match="written by stock verl"):
        loader().load_state_dict({"_snapshot": {}})
    with pytest.raises(SgpoError, match=r"written by sgpo-verl 0\.0\.1, this is"):
        loader().load_state_dict({**loader().state_dict(), "sgpo_verl": "0.0.1"})
    state = loader({"seed": 3}).state_dict()
    with pytest.raises(SgpoError, match=r"sgpo.seed: checkpoint '3', run '0'"):
        loader().load_state_dict(state)


def started(folder, **more):
    arguments = tiny.overrides(folder, **{"algorithm.adv_estimator": None, "+sgpo": "paper", **more})
    config = OmegaConf.create(compose(arguments))
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    return Session.start(config, create_rl_dataset(config.data.train_files, config.data, tokenizer, None), tokenizer)


def test_a_started_session_does_not_keep_the_profile(folder, monkeypatch):
    path = tiny.make_profile(
        folder, [4] * 48, tiny.overrides(folder, **{"algorithm.adv_estimator": None, "+sgpo": "paper"})
    )
    seen = []

    def load(path):
        profile = load_profile(path)
        seen.append(weakref.ref(profile.table))
        return profile

    monkeypatch.setattr("sgpo_verl.binding.session.load_profile", load)
    session = started(folder, **{"sgpo.profile.path": path})
    gc.collect()
    assert session.plan.total_steps > 0
    assert [table() for table in seen] == [None]


def dataset_of(folder, frame: datasets.Dataset):
    """verl's data set class over other rows."""
    config = OmegaConf.create(compose(tiny.overrides(folder)))
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    dataset = create_rl_dataset(config.data.train_files, config.data, tokenizer, None)
    dataset.dataframe = frame
    return dataset


def rows_of(sources: list[str], indices: pa.Array) -> datasets.Dataset:
    messages = pa.array([[{"role": "user", "content": f"{i}+1="}] for i in range(len(indices))])
    extra_info = pa.StructArray.from_arrays([indices], ["index"])
    return datasets.Dataset(pa.table({"data_source": sources, "prompt": messages, "extra_info": extra_info}))


def test_a_filtered_and_shuffled_data_set_has_the_keys_of_its_rows(folder, monkeypatch):
    monkeypatch.setattr("sgpo_verl.binding.dataloader.ROWS_AT_ONCE", 2)
    frame = rows_of(["a", "a", "b", "b", "a"], pa.array([7, 8, 7, 8, 9]))
    prompts = identify_dataset(dataset_of(folder, frame.select([4, 2, 0])), "error")
    assert prompts.keys_P.tolist() == ["a:9", "b:7", "a:7"]
    assert (prompts.rows_P.tolist(), prompts.sources_P.tolist()) == ([0, 1, 2], ["a", "b", "a"])


@pytest.mark.parametrize(
    ("indices", "keys"),
    [
        (pa.array(["x", "y"]), ["s:x", "s:y"]),
        (pa.array([2**63, 1], pa.uint64()), [f"s:{2**63}", "s:1"]),
        # sha256 of '["s", [[{"content": "0+1=", "role": "user"}], null]]' and of that with "1+1=", first 16 digits
        (pa.array([1, 1]), ["s#392feac07d8aaefa", "s#b48c018023f15583"]),
        (pa.array([1, None]), ["s#392feac07d8aaefa", "s#b48c018023f15583"]),
    ],
)
def test_indices_that_are_not_one_integer_per_row_are_read_row_by_row(folder, indices, keys):
    prompts = identify_dataset(dataset_of(folder, rows_of(["s", "s"], indices)), "error")
    assert prompts.keys_P.tolist() == keys
