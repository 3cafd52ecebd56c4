"""Adding profiles up."""

from dataclasses import replace

import pandas as pd
import pytest
from profiles import make_profile

from sgpo_verl.errors import SgpoError
from sgpo_verl.merge import merge
from sgpo_verl.profile import Profile, ProfileMetadata, load_profile, save_profile


def made(successes, seed=0, number=1, **metadata):
    """A profile of pass ``number``, sampled with ``seed``."""
    profile = make_profile(successes)
    passes = [{"id": f"pass {number}", "seed": seed}]
    return replace(profile, metadata=replace(profile.metadata, passes=passes, **metadata))


def rows(profile):
    return profile.table.set_index("prompt_key")


def test_counts_add_up_and_means_are_weighted_by_trials():
    a = made([3, 0], seed=0, number=1, total_tokens=100, flops=5.0, seconds=2.0)
    b = made([1, 8], seed=1, number=2, total_tokens=40, flops=1.5, seconds=3.0)
    b.table["trials"] = 24
    b.table["response_tokens_mean"] = 40.0
    b.table["reward_mean"] = [1 / 24, 8 / 24]
    total = merge([a, b])
    assert rows(total)["trials"].tolist() == [32, 32]
    assert rows(total)["successes"].tolist() == [4, 8]
    # (8 x 3/8 + 24 x 1/24) / 32 = 4/32; (8 x 20 + 24 x 40) / 32 = 35
    assert rows(total)["reward_mean"].tolist() == [0.125, 0.25]
    assert rows(total)["response_tokens_mean"].tolist() == [35.0, 35.0]
    assert rows(total)["prompt_tokens"].tolist() == [10, 10]
    assert (total.metadata.total_tokens, total.metadata.flops, total.metadata.seconds) == (140, 6.5, 5.0)
    assert [p["id"] for p in total.metadata.passes] == ["pass 1", "pass 2"]


def shifted(profile, by):
    """The same counts for other prompts."""
    table = profile.table.copy()
    table["index"] += by
    table["prompt_key"] = [f"toy:{i}" for i in table["index"]]
    return replace(profile, table=table)


def test_prompts_that_only_one_has_are_kept_in_order_of_appearance():
    a, b = made([1, 2, 3], seed=0, number=1), shifted(made([4, 5, 6], seed=1, number=2), 2)
    total = merge([a, b])
    assert rows(total)["successes"].to_dict() == {"toy:0": 1, "toy:1": 2, "toy:2": 7, "toy:3": 5, "toy:4": 6}
    assert rows(total)["trials"].tolist() == [8, 8, 16, 8, 8]
    assert rows(total)["index"].tolist() == [0, 1, 2, 3, 4]
    assert set(rows(total)["data_source"]) == {"toy"}


def test_order_of_rows_does_not_matter():
    a, b = made([1, 2, 3], number=1), made([4, 5, 6], seed=1, number=2)
    mixed = replace(b, table=b.table.iloc[[2, 0, 1]].reset_index(drop=True))
    first, second = (merge(pair).table.astype({"data_source": str}) for pair in ([a, b], [a, mixed]))
    pd.testing.assert_frame_equal(first, second)


def test_three_at_once_are_as_two_and_one():
    parts = [made([i, 8 - i], seed=i, number=i) for i in range(3)]
    pd.testing.assert_frame_equal(merge(parts).table, merge([merge(parts[:2]), parts[2]]).table)


def test_a_prompt_that_failed_in_one_counts_from_the_other():
    a, b = made([0, 3], number=1), made([5, 0], seed=1, number=2)
    a.table.loc[0, ["trials", "reward_mean"]] = 0
    a.table["failure"] = ["too long", None]
    b.table.loc[1, ["trials", "reward_mean"]] = 0
    b.table["failure"] = [None, "hung"]
    c = merge([a, b])
    assert rows(c)["trials"].tolist() == [8, 8]
    assert c.table["failure"].isna().all()
    b.table.loc[0, ["trials", "successes", "reward_mean"]] = 0
    assert merge([a, b]).table["failure"].tolist() == ["too long", None]


def test_a_merged_profile_survives_the_disk(tmp_path):
    total = merge([made([3, 0], number=1), made([1, 8], seed=1, number=2)])
    loaded = load_profile(save_profile(total, tmp_path / "p.parquet"))
    assert loaded.metadata == total.metadata
    assert rows(loaded)["successes"].tolist() == [4, 8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"path": "x", "fingerprint": "other"}}, r"model\.fingerprint: first '.*', second 'other'"),
        ({"sampling": {"temperature": 0.5}}, r"sampling\.temperature: first 1\.0, second 0\.5"),
        ({"reward": {"name": "f"}}, r"reward\.name"),
        ({"data": {"toy.parquet": "changed"}}, r"data\.toy\.parquet: first '.*', second 'changed'"),
        ({"success_threshold": 0.9}, r"success_threshold: first 0\.5, second 0\.9"),
    ],
)
def test_what_does_not_fit_is_refused_by_field(change, message):
    a = made([1], **identity())
    b = made([1], seed=1, number=2, **{**identity(), **change})
    with pytest.raises(SgpoError, match=f"a and b: cannot be added up .*{message}"):
        merge([a, b], ["a", "b"])


def identity():
    return {
        "model": {"path": "m", "fingerprint": "f"},
        "data": {"toy.parquet": "h"},
        "sampling": {"temperature": 1.0},
        "reward": {"name": "r"},
        "chat_template": "t",
        "tokenizer": "k",
    }


def test_the_same_samples_are_not_counted_twice():
    a = made([1, 2], seed=0, number=1)
    with pytest.raises(SgpoError, match="both hold the samples of pass pass 1"):
        merge([a, a])
    with pytest.raises(SgpoError, match=r"both sampled toy:0 with sgpo\.seed=0.*--add"):
        merge([a, made([1, 2], seed=0, number=2)])


def test_the_same_seed_over_other_prompts_is_fine():
    total = merge([made([1, 2], seed=0, number=1), shifted(made([3], seed=0, number=2), 5)])
    assert rows(total)["successes"].to_dict() == {"toy:0": 1, "toy:1": 2, "toy:5": 3}


def test_other_files_add_prompts_but_must_not_share_any():
    a = made([1, 2], **{**identity(), "data": {"a.parquet": "1"}})
    b = made([3, 4], seed=1, number=2, **{**identity(), "data": {"b.parquet": "2"}})
    with pytest.raises(SgpoError, match="are of different files, yet both have toy:0"):
        merge([a, b])
    total = merge([a, shifted(b, 10)])
    assert len(total) == 4
    assert total.metadata.data == {"a.parquet": "1", "b.parquet": "2"}


def test_a_profile_known_by_index_alone_is_refused():
    profile = Profile(made([1]).table, made([1]).metadata, by_index=True)
    with pytest.raises(SgpoError, match="profile 2: has indices for prompts, no keys"):
        merge([made([1]), profile])


def test_a_table_that_states_nothing_is_not_added_to_one_that_does():
    plain = Profile(made([1]).table, ProfileMetadata(success_threshold=None))
    with pytest.raises(SgpoError, match="chat_template: only one of them states it"):
        merge([made([1]), plain])
    assert merge([plain, plain]).samples == 16
