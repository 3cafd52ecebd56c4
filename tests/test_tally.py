"""The running figures of a profiling pass."""

import numpy as np

from sgpo_verl.config import FilterSettings
from sgpo_verl.counts import Sampled
from sgpo_verl.tally import Tally, plain_lines


def make_tally(**more):
    now = [0.0]
    tally = Tally(4, 32, FilterSettings(), clock=lambda: now[0])
    return tally, now


def test_the_line_has_speed_time_left_and_shares():
    tally, now = make_tally()
    assert tally.seconds_left is None
    now[0] = 2.0
    tally.add(Sampled(0, 8, 8, 8.0, 10, 90), 8, 8)
    tally.add(Sampled(1, 8, 0, 0.0, 10, 290), 8, 0)
    # 2 requests and 100 + 300 tokens in 2 s; 16 of 32 samples, so 2 s more
    assert tally.line() == (
        "16/32 samples (50%), 1 prompts/s, 200 tokens/s, 0:02 left; "
        "trivial 50%, learnable 0%, unsolved 50% of 2 prompts"
    )


def test_a_prompt_changes_class_as_trials_come_in_and_counts_once():
    tally, now = make_tally()
    tally.add(Sampled(0, 4, 0, 0.0, 1, 1), 4, 0)
    tally.add(Sampled(0, 4, 2, 2.0, 1, 1), 8, 2)
    now[0] = 3700.0
    assert tally.line().endswith("learnable 100%, unsolved 0% of 1 prompts")
    assert "3:05:00 left" in tally.line()  # 8 of 32 in 3700 s: 11,100 s more


def test_failures_are_requests_but_no_samples():
    tally, _ = make_tally()
    tally.add(Sampled(0, 0, 0, 0.0, 0, 0, "too long"), 0, 0)
    assert (tally.requests, tally.samples) == (1, 0)


def test_what_earlier_calls_sampled_counts_but_not_for_the_speed():
    tally, now = make_tally()
    tally.found(np.array([8, 8, 0, 0]), np.array([8, 3, 0, 0]))
    now[0] = 1.0
    tally.add(Sampled(2, 8, 0, 0.0, 1, 1), 8, 0)
    assert tally.samples == 24
    assert tally.seconds_left == 1.0
    assert "trivial 33%, learnable 33%, unsolved 33% of 3 prompts" in tally.line()


def test_plain_lines_come_at_intervals_and_at_the_end(capsys):
    tally, _ = make_tally()
    show = plain_lines(every=3600)
    for position in range(4):
        tally.add(Sampled(position, 8, 4, 4.0, 1, 1), 8, 4)
        show(tally)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("sgpo: profiled 32/32 samples (100%)")
