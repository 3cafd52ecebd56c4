"""Tokens and FLOPs, worked out by hand."""

import json

import pytest

from sgpo_verl.cost import ModelShape, StepTokens, generate_flops, shape_from_config, shape_from_path, step_flops
from sgpo_verl.errors import SgpoError

SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 10}


@pytest.mark.parametrize(
    ("changes", "parameters", "attention"),
    [
        # head size 4; queries and output 2 x 8 x 8, keys and values 2 x 8 x 8, MLP 3 x 8 x 16: 640 in each of 2 layers
        ({}, 1280, 16),
        ({"num_key_value_heads": 1}, 1152, 16),  # keys and values 2 x 8 x 4: 576
        ({"num_key_value_heads": None, "head_dim": None}, 1280, 16),
        ({"head_dim": 16}, 2816, 64),  # 4 x 8 x 32 + 384 = 1408; 2 layers x 2 heads x 16
        # attention 256; two experts of 3 x 8 x 10 = 240, router 8 x 4: 768
        (MIXTURE, 1536, 16),
        (MIXTURE | {"shared_expert_intermediate_size": 6}, 1824, 16),  # 768 + 3 x 8 x 6 = 912
        (MIXTURE | {"n_shared_experts": 1}, 2016, 16),  # 768 + 3 x 8 x 10 = 1008
        # without a width of their own, experts are as wide as a dense MLP: 256 + 2 x 384 + 32 = 1056
        ({"num_local_experts": 4, "num_experts_per_tok": 2}, 2112, 16),
    ],
)
def test_shape_of_a_model(changes, parameters, attention):
    assert shape_from_config(SMALL | changes) == ModelShape(parameters, attention)
    assert shape_from_config({"model_type": "some_vl", "text_config": SMALL | changes}) == ModelShape(
        parameters, attention
    )


def test_shapes_of_published_models():
    # Qwen2.5-0.5B: "0.36B non-embedding parameters"
    qwen = {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "intermediate_size": 4864}
    assert shape_from_config(qwen | {"num_key_value_heads": 2}).parameters == 357_826_560
    # Mixtral 8x7B: "12.9B active", embeddings 2 x 32,000 x 4,096 = 0.26B included
    mixtral = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336}
    mixtral |= {"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2}
    assert shape_from_config(mixtral).parameters == 12_617_515_008


@pytest.mark.parametrize("missing", list(SMALL))
def test_a_missing_key_is_named(missing):
    config = {key: value for key, value in SMALL.items() if key != missing}
    with pytest.raises(SgpoError, match=rf"toy/config\.json: no key '{missing}'"):
        shape_from_config(config, "toy/config.json")


def test_experts_without_their_number_per_token_are_refused():
    with pytest.raises(SgpoError, match=r"config\.json: has experts but no num_experts_per_tok"):
        shape_from_config(SMALL | {"num_experts": 4})


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": None},
        {"hidden_size": "8"},
        {"num_attention_heads": 0},
        {"num_hidden_layers": -1},
        {"intermediate_size": [1, 2]},
        {"text_config": [1]},
    ],
    ids=repr,
)
def test_values_that_no_model_has_are_refused_by_the_file(changes):
    with pytest.raises(SgpoError, match=r"toy/config\.json: "):
        shape_from_config(SMALL | changes, "toy/config.json")


def test_shape_of_a_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    assert shape_from_path(tmp_path) == shape_from_path(str(tmp_path)) == ModelShape(1280, 16)


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe\x00", b"[]", b"null"], ids=repr)
def test_a_folder_without_a_readable_config_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(SgpoError, match=r"config\.json: "):
        shape_from_path(tmp_path)


def test_a_forward_pass():
    # 2 x 3 x 100 tokens = 600; 4 rows of 25: 2 x 5 x 100 x 25 = 25,000
    assert ModelShape(3, 5).forward_flops(tokens=100, rows=4) == 25_600
    assert ModelShape(3, 5).forward_flops(tokens=0, rows=0) == 0


def test_a_prompt_is_read_once_per_group():
    # 2 groups of 2 rows; prompts of 10 tokens, responses of 20: 20 + 80 tokens
    step = StepTokens(groups=2, prompt_tokens=20, rows=4, response_tokens=80)
    assert step.generated == 100
    # 2 x 100; positions 2 x 10^2 + 4 x (2 x 10 x 20 + 20^2) = 3400, twice
    assert generate_flops(ModelShape(1, 1), step) == 200 + 6800


def test_groups_of_one_cost_a_forward_pass_over_whole_sequences():
    step = StepTokens(groups=4, prompt_tokens=40, rows=4, response_tokens=80)
    # 4 rows of 30: 2 x 120 + 2 x 120 x 30
    assert generate_flops(ModelShape(1, 1), step) == ModelShape(1, 1).forward_flops(120, 4) == 7440


def test_nothing_generated_costs_nothing():
    assert generate_flops(ModelShape(1, 1), StepTokens(0, 0, 0, 0)) == 0


@pytest.mark.parametrize(("scoring_passes", "epochs", "forwards"), [(1, 1, 4), (0, 1, 3), (2, 1, 5), (1, 3, 10)])
def test_training_is_its_scoring_passes_and_three_forward_passes_per_epoch(scoring_passes, epochs, forwards):
    step = StepTokens(2, 20, 4, 80, trained=128, trained_rows=4, scoring_passes=scoring_passes, epochs=epochs)
    # generated tokens 100; a forward pass over 128 tokens is 256
    assert step_flops(ModelShape(1, 0), step) == (200, forwards * 256)


def test_a_shape_as_a_dict():
    assert ModelShape(1, 2).to_dict() == {"parameters": 1, "attention": 2}
