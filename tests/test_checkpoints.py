"""What a run resumes from: whole, torn and foreign checkpoints."""

import pytest
import torch
from omegaconf import OmegaConf

from sgpo_verl.binding.checkpoints import resumed_state
from sgpo_verl.errors import SgpoError


def config(place, **trainer):
    return OmegaConf.create(
        {"trainer": {"default_local_dir": str(place), "resume_mode": "auto", "resume_from_path": None, **trainer}}
    )


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of steps 3 and 12, as verl leaves them."""
    for step in (3, 12):
        folder = tmp_path / f"global_step_{step}"
        folder.mkdir()
        torch.save({"step": step}, folder / "data.pt")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("12")
    return tmp_path


def test_the_state_is_that_of_the_checkpoint_that_verl_will_resume(saved, tmp_path_factory):
    assert resumed_state(config(saved)) == {"step": 12}
    assert resumed_state(config(tmp_path_factory.mktemp("new"))) is None
    by_name = config(saved, resume_mode="resume_path", resume_from_path=str(saved / "global_step_3"))
    assert resumed_state(by_name) == {"step": 3}


def test_a_tracker_cut_off_while_it_was_written_names_the_newest_complete_checkpoint(saved, capsys):
    tracker = saved / "latest_checkpointed_iteration.txt"
    tracker.write_text("")
    (saved / "global_step_15").mkdir()  # killed while saving: no state in it
    assert resumed_state(config(saved)) == {"step": 12}
    assert tracker.read_text() == "12"
    assert "resuming from step 12" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda place: (place / "global_step_12" / "data.pt").unlink(), "data.pt: no such file"),
        (lambda place: (place / "global_step_12" / "data.pt").write_bytes(b""), "data.pt: cannot be read"),
        (
            lambda place: (place / "global_step_12" / "data.pt").write_bytes(b"PK\x03\x04 torn"),
            "data.pt: cannot be read",
        ),
        (lambda place: (place / "latest_checkpointed_iteration.txt").write_text("twelve"), "holds 'twelve'"),
        (lambda place: (place / "latest_checkpointed_iteration.txt").write_text("7"), "names step 7"),
    ],
)
def test_what_cannot_be_resumed_is_named_with_the_way_out(saved, break_it, words):
    break_it(saved)
    with pytest.raises(SgpoError, match=words):
        resumed_state(config(saved))


def test_a_disabled_resume_looks_at_nothing(saved):
    (saved / "global_step_12" / "data.pt").unlink()
    assert resumed_state(config(saved, resume_mode="disable")) is None
