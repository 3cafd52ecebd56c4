"""Our metrics in verl's tracking as it is: what each tracker keeps, by its own reader. A real run: ``test_combined.py``."""

import pytest
from events import check_events
from profiles import make_profile
from verl.utils.tracking import Tracking

from sgpo_verl.cost import ModelShape, StepTokens
from sgpo_verl.methods.base import Outcome
from sgpo_verl.metrics import Ledger, StepRollouts, StepTotals

SHAPE = ModelShape(parameters=7_000_000_000, attention=1000)


def steps() -> list[dict[str, float]]:
    """Three steps as the trainer logs them: of four groups of two, one more is mixed each time; totals of a 7B model."""
    ledger, logged = Ledger.after_profile(SHAPE, make_profile([1, 4, 8, 0])), []
    for mixed in (1, 2, 3):
        totals = StepTotals()
        tokens = StepTokens(4, 400, 8, 4000, 4800, 8, 1, 1)
        totals.add([Outcome(i, 2, int(i < mixed), (i < mixed) / 2) for i in range(4)], tokens, StepRollouts(8, 8, 0))
        ledger.add(SHAPE, tokens, 8)
        values = totals.metrics() | ledger.metrics() | {"curriculum/phase": 0}
        logged.append({f"sgpo/{name}": value for name, value in values.items()})
    assert [step["sgpo/group/frac_mixed"] for step in logged] == [0.25, 0.5, 0.75]
    return logged


@pytest.fixture
def there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"TENSORBOARD_DIR": "events", "VERL_FILE_LOGGER_PATH": "metrics.jsonl"}
    for name, place in places.items():
        monkeypatch.setenv(name, str(tmp_path / place))
    return tmp_path


def test_tensorboard_and_the_file_log_keep_every_value(there):
    import tiny

    tracking = Tracking("project", "run", ["file", "tensorboard"])
    for number, step in enumerate(steps(), start=1):
        tracking.log(step, number)
    tracking.finish()
    assert tiny.metrics(there) == steps()
    check_events(there / "events", steps(), generations=False)
