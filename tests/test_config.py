"""The settings: paper's defaults, one definition, and bad input refused by name."""

from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import sgpo_verl.conf
from sgpo_verl.config import Settings, load_settings
from sgpo_verl.errors import SgpoError
from sgpo_verl.parts import PARTS
from sgpo_verl.run_config import compose, settings_of

PAPER_YAML = Path(sgpo_verl.conf.__file__).parent / "sgpo" / "paper.yaml"


def leaves(node: type[BaseModel] = Settings, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], FieldInfo]:
    """Path of every setting that holds a value -> its definition."""
    found = {}
    for name, field in node.model_fields.items():
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        found |= leaves(field.annotation, (*path, name)) if nested else {(*path, name): field}
    return found


def at(tree: dict, path: tuple[str, ...]):
    for part in path:
        tree = tree[part]
    return tree


def nested(path: tuple[str, ...], value) -> dict:
    return {path[0]: nested(path[1:], value) if path[1:] else value}


def test_defaults_are_the_papers():
    settings = load_settings({})
    assert settings.profile.n == 8
    assert (settings.filter.max_pass_rate, settings.filter.unsolved_fraction) == (0.75, 0.1)
    assert (settings.group_size.min, settings.group_size.max, settings.group_size.rounding) == (2, 8, "floor")
    assert (settings.curriculum.until, settings.curriculum.epochs) == ("epochs", None)
    assert (settings.success_threshold, settings.graded_rewards, settings.seed) == (0.5, False, 0)


def test_the_yaml_of_sgpo_paper_has_every_setting_at_its_default():
    written = yaml.safe_load(PAPER_YAML.read_text())["sgpo"]
    switches = {path for path, _ in leaves().items() if at(written, path) is None}
    assert {("allocation",), ("advantage",), ("prune",), ("filter", "by"), ("curriculum", "order")} <= switches
    assert load_settings(written) == Settings()
    assert all(at(written, path) is not ... for path in leaves())  # a key that is missing cannot be overridden


@pytest.mark.parametrize("method", PARTS)
def test_every_method_has_a_word_that_composes_into_its_parts(method):
    settings = settings_of(compose([f"+sgpo={method}"]))
    assert settings.method == method
    assert PARTS[method] == {
        "filter": settings.filter.by,
        "allocation": settings.allocation,
        "curriculum": settings.curriculum.order,
        "advantage": settings.advantage,
        "prune": settings.prune,
    }


def test_an_ablation_is_a_list_of_overrides():
    words = [
        "+sgpo=paper",
        "sgpo.filter=none",
        "sgpo.curriculum=shuffle",
        "sgpo.allocation=uniform",
        "sgpo.advantage=posterior",
    ]
    settings = settings_of(compose(words))
    assert (settings.filter.by, settings.curriculum.order) == ("none", "shuffle")
    assert (settings.allocation, settings.advantage, settings.prune) == ("uniform", "posterior", False)
    assert settings_of(compose([*words, "sgpo.filter=null", "sgpo.prune=true"])).filter.by == "profile"


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ({"allocation": "posterior"}, "allocation=posterior .* needs curriculum=posterior, not phases"),
        ({"method": "greso", "allocation": "profile"}, "filter=mixed .* needs allocation=uniform, not profile"),
        ({"method": "prune", "filter": "mixed"}, "filter=mixed leaves no rows without advantage"),
        ({"method": "greso", "advantage": "aero"}, "filter=mixed drops the groups that advantage=aero is for"),
        ({"filter": "mixed", "allocation": "uniform"}, "filter=mixed .* use curriculum=shuffle or greso"),
        ({"method": "aero", "graded_rewards": True}, "advantage=aero is of right and wrong answers"),
        ({"method": "prune", "batch": {"unit": "prompts"}}, "batch.unit=prompts needs steps of one group size"),
        ({"method": "prune", "curriculum": {"until": "plateau"}}, "curriculum.until=plateau ends a phase"),
        ({"method": "bayes", "advantage": "grpo", "group_size": {"min": 1}}, "a group of one is never mixed"),
        ({"method": "greso", "filter": "none", "allocation": "profile"}, "curriculum=greso draws groups of one size"),
        ({"method": "bayes", "curriculum": {"epochs": 2}}, "curriculum.epochs .* set trainer.total_epochs"),
        ({"method": "paper", "allocation": "rescue"}, "allocation=rescue .* not phases"),
    ],
)
def test_parts_that_make_no_sense_together_are_refused_with_the_reason(node, reason):
    with pytest.raises(SgpoError, match=reason):
        load_settings(node)


def test_every_setting_is_described():
    undescribed = [path for path, field in leaves().items() if not (field.description or "").endswith(".")]
    assert undescribed == []


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"filtr": {}}, "sgpo.filtr: no such setting; did you mean sgpo.filter?"),
        (
            {"filter": {"max_pas_rate": 0.5}},
            "sgpo.filter.max_pas_rate: no such setting; did you mean sgpo.filter.max_pass_rate?",
        ),
        (
            {"filter": {"xyzzy": 1}},
            "sgpo.filter.xyzzy: no such setting; known here: by, max_pass_rate, unsolved_fraction",
        ),
    ],
)
def test_an_unknown_setting_is_named_with_the_way_out(node, message):
    with pytest.raises(SgpoError) as refused:
        load_settings(node)
    assert str(refused.value) == message


def test_all_bad_settings_are_named_at_once():
    with pytest.raises(SgpoError, match=r"sgpo\.seed='x'.*; sgpo\.profile\.n=0.*; sgpo\.nope: no such setting"):
        load_settings({"seed": "x", "profile": {"n": 0}, "nope": 1})


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method", "grpo"),
        ("seed", 1.5),
        ("seed", None),
        ("seed", -1),  # numpy's generators refuse it
        ("seed", True),
        ("success_threshold", "high"),
        ("success_threshold", NAN),  # nothing would ever succeed
        ("success_threshold", INFINITY),
        ("graded_rewards", "perhaps"),
        ("duplicates", "last"),
        ("profile", None),
        ("profile", 8),
        ("profile.path", 3),
        ("profile.n", 0),
        ("profile.n", True),
        ("profile.n", "eight"),
        ("profile.max_in_flight", 0),
        ("filter.max_pass_rate", 1.01),
        ("filter.max_pass_rate", -0.1),
        ("filter.max_pass_rate", NAN),
        ("filter.unsolved_fraction", 2),
        ("filter.unsolved_fraction", NAN),
        ("group_size.min", 0),
        ("group_size.max", 0),
        ("group_size.max", 10**30),  # more than an int64 holds
        ("group_size.rounding", "up"),
        ("curriculum.until", "convergence"),
        ("curriculum.epochs", 0),
        ("curriculum.window", 0),
        ("curriculum.min_gain", NAN),
        ("batch.unit", "tokens"),
        ("batch.rollouts", 0),
    ],
)
def test_a_value_of_the_wrong_type_or_out_of_bounds_is_refused_by_name(key, value):
    with pytest.raises(SgpoError) as refused:
        load_settings(nested(tuple(key.split(".")), value))
    assert str(refused.value).startswith(f"sgpo.{key}={value!r}: ")


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({"group_size": {"min": 8, "max": 2}}, ["sgpo.group_size", "min (8) is larger than max (2)"]),
        ({"curriculum": {"steps": [3]}}, ["curriculum.steps", "curriculum.until=steps"]),
        ({"curriculum": {"until": "steps"}}, ["curriculum.steps", "curriculum.until=steps"]),
        ({"batch": {"unit": "prompts", "rollouts": 64}}, ["batch.rollouts", "batch.unit"]),
        ({"curriculum": {"order": "custom"}}, ["curriculum.custom.path", "curriculum.custom.name"]),
        ({"curriculum": {"custom": {"name": "Mine"}}}, ["sgpo.curriculum", "custom.name", "order=custom, not phases"]),
    ],
)
def test_settings_that_contradict_each_other_are_refused_in_one_short_line(node, words):
    with pytest.raises(SgpoError) as refused:
        load_settings(node)
    message = str(refused.value)
    assert all(word in message for word in words)
    assert "{" not in message  # not the whole node
    assert "Value error" not in message  # not pydantic's words


@pytest.mark.parametrize("path", sorted(leaves().keys() - {("curriculum", "custom", "kwargs")}), ids=".".join)
def test_no_setting_takes_a_mapping(path):
    with pytest.raises(SgpoError, match=rf"sgpo\.{'.'.join(path)}="):
        load_settings(nested(path, {"a": 1}))


def test_settings_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="frozen"):
        load_settings({}).seed = 3
