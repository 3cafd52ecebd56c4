"""The state of the curriculum's dataloader under inputs that nobody would think of; see test_fuzz.py."""

import json

from hypothesis import given
from hypothesis import strategies as st
from test_fuzz import STATES, changed, fuzz, method, refused

from sgpo_verl.binding.dataloader import CurriculumDataLoader
from sgpo_verl.errors import SgpoError
from sgpo_verl.metrics import Ledger

TOTALS = Ledger(1e9, 2e9, 3e9, 400, 500, 6e3, 70.0).state_dict()
SAVED = [{"sgpo_verl": "0.1.0", "method": state, "ledger": TOTALS} for state in STATES]


@fuzz(80)
@given(st.sampled_from(SAVED).flatmap(changed))
def test_a_checkpoint_is_valid_or_refused(state):
    loader = CurriculumDataLoader([], [], method(), Ledger())
    try:
        loader.load_state_dict(state)
    except SgpoError as error:
        return refused(error, "checkpoint")
    restored = loader.state_dict()
    assert restored["ledger"].items() <= state["ledger"].items()
    assert restored["method"].items() <= state["method"].items()
    json.dumps(restored, allow_nan=False)
    assert sum(size for _, size in loader.method.next_groups(64)) == 64
