"""Which finished groups make up a step, and when to wait for more."""

import http.server
import itertools
import threading

import pytest
import verl.trainer.ppo.v1  # noqa: F401 - has our trainers registered, and they import the buffer

from sgpo_verl.binding.replay import GroupBuffer, closest, fitting
from sgpo_verl.binding.watch import check_servers
from sgpo_verl.errors import SgpoError


@pytest.mark.parametrize(
    ("sizes", "rollouts", "places"),
    [
        ([2, 4, 8, 2], 8, [0, 1, 3]),  # the 8 does not fit beside the two oldest, the last 2 does
        ([4, 4, 8], 8, [0, 1]),
        ([2, 8], 8, [1]),  # the oldest must wait: nothing makes 6 with it
        ([3, 3, 3], 8, None),
        ([], 0, []),
    ],
)
def test_the_earliest_groups_that_fit_exactly(sizes, rollouts, places):
    assert fitting(sizes, rollouts) == places


def test_the_choice_is_that_of_all_choices_which_comes_first():
    for sizes in itertools.product((1, 2, 3, 5), repeat=4):
        choices = [c for n in range(5) for c in itertools.combinations(range(4), n)]
        for rollouts in range(1, 9):
            exact = [c for c in choices if sum(sizes[i] for i in c) == rollouts]
            # the oldest group is in it if it can be; then the next; and so on
            first = max(exact, key=lambda c: [i in c for i in range(4)], default=None)
            assert fitting(sizes, rollouts) == (None if first is None else list(first))


def test_without_an_exact_choice_the_closest_from_below():
    assert closest([3, 3, 3], 8) == [0, 1]
    assert closest([9], 8) == []


def buffer(sizes: dict[str, int], steps: dict[str, int], running=()) -> GroupBuffer:
    """A buffer in which these groups, of these sizes and steps, are finished; prompts are worth 4 rollouts."""
    made = GroupBuffer(
        trainer_mode="colocate_async",
        trainer_config={},
        max_off_policy_threshold=None,
        max_off_policy_strategy="drop",
        sampler_kwargs={},
        watch=lambda: None,
        diagnose=lambda: None,
        leaving=lambda batch, finished: None,
        sizes={},
    )
    made.rollouts_per_prompt = 4.0
    made.partitions["train"] = {f"{uid}_{i}_0": {} for uid, n in sizes.items() for i in range(n)}
    made.prompt_global_steps["train"] = steps
    made.finished_keys["train"] = set(sizes)
    made.running_keys["train"] = set(running)
    return made


def test_older_groups_come_first_and_the_sum_is_exact():
    made = buffer({"a": 2, "b": 4, "c": 2, "d": 4}, {"a": 2, "b": 1, "c": 1, "d": 3})
    # two prompts: 8 rollouts. b and c are the oldest, 6; then a.
    selected, _, _ = made._select_prompt_uids("train", {"a", "b", "c", "d"}, 2)
    assert selected == ["b", "c", "a"]


def test_outputs_of_a_session_count_once():
    made = buffer({"a": 4}, {"a": 1})
    made.partitions["train"]["a_0_1"] = {}
    assert made._has_enough_samples(1, "train", 1, {"a"})


def test_where_groups_do_not_add_up_the_next_update_gets_what_this_one_lacks():
    made = buffer({"a": 3, "b": 3, "c": 5}, {}, running={"d"})
    assert made._has_enough_samples(1, "train", 1, {"a", "b", "c"})
    assert made._select_prompt_uids("train", {"a", "b", "c"}, 1)[0] == ["a"]  # 3 of 4: one is owed
    assert made._select_prompt_uids("train", {"b", "c"}, 1)[0] == ["c"]  # 4 + 1 = 5
    assert not made._has_enough_samples(1, "train", 1, {"b"})  # 3 of 4, and no more is there


def test_an_update_is_never_empty():
    assert not buffer({"a": 9}, {})._has_enough_samples(1, "train", 1, {"a"})


def test_dropped_groups_are_replaced_by_others_of_their_sizes():
    made = buffer({"a": 3, "b": 5}, {})
    made._submitted = lambda uids, partition: [made._size(partition)[uid] for uid in uids]
    made._clear_groups = lambda partition, uids: None
    made._evict_terminal_groups(1, "train", ({"b"}, {"a"}, set(), {}))
    assert (made.take_evicted(), made.take_evicted()) == ([3, 5], [])


def test_validation_and_steps_counted_in_prompts_are_verls():
    made = buffer({"a": 1, "b": 1}, {})
    assert made._has_enough_samples(1, "val", 2, {"a", "b"})
    made.rollouts_per_prompt = None
    assert made._has_enough_samples(1, "train", 2, {"a", "b"})
    assert not made._has_enough_samples(1, "train", 3, {"a", "b"})


@pytest.fixture
def server():
    """(its address, a dict whose "status" it answers with)."""
    says = {"status": 200}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/health" and says["status"] == "silent":
                threading.Event().wait(1)
                return
            self.send_response(says["status"] if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *args):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", says
    running.shutdown()


def test_a_server_that_answers_or_is_busy_is_alive(server):
    address, says = server
    check_servers([address])
    says["status"] = "silent"
    check_servers([address], timeout=0.2)
    check_servers([])


def test_a_dead_engine_and_a_closed_port_are_named(server):
    address, says = server
    says["status"] = 503
    with pytest.raises(
        SgpoError, match=rf"rollout server died: {address} \(HTTP 503\), http://127.0.0.1:1 \(.*refused\)"
    ):
        check_servers([address, "http://127.0.0.1:1"])
