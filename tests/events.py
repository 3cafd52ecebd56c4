"""What verl left for TensorBoard, by TensorBoard's own reader."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def check_events(folder: Path, logged: list[dict], generations: bool = True) -> None:
    """Every metric of ours of every step is there, as in the file log (in float32); and validation answers, as text."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    ours = {key for metrics in logged for key in metrics if key.startswith("sgpo/")}
    assert {"sgpo/group/frac_mixed", "sgpo/flops/total", "sgpo/curriculum/phase"} <= ours
    assert ours <= set(events.Tags()["scalars"])
    for key in ours:
        shown = {event.step: event.value for event in events.Scalars(key)}
        assert shown == pytest.approx({step: m[key] for step, m in enumerate(logged, start=1)}, rel=1e-6)
    assert not generations or any("generations" in tag for tag in events.Tags()["tensors"])
