"""The command line: help for every command, and bad input in one line with exit code 2."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from profiles import make_profile

from sgpo_verl import cli
from sgpo_verl.profile import save_profile

COMMANDS = typer.main.get_command(cli.app).commands


@pytest.fixture
def sgpo(monkeypatch, capsys):
    """Run ``sgpo <arguments>`` in this process -> (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sgpo", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (ended.value.code or 0, *capsys.readouterr())

    return run


def test_the_commands_are_there():
    assert {"doctor", "profile", "plan", "report", "demo"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(sgpo, command):
    code, out, _ = sgpo(command, "--help")
    assert code == 0
    assert "Usage:" in out
    known = COMMANDS[command]
    about = known.commands["run"].help if command == "profile" else known.help
    assert " ".join(about.split())[:30] in " ".join(out.split())


def test_what_can_be_done_with_profiles_explains_itself(sgpo):
    for word in ("merge", "show"):
        code, out, _ = sgpo("profile", word, "--help")
        assert (code, f"sgpo profile {word}" in out) == (0, True)
    assert "sgpo profile merge --help" in sgpo("profile", "--help")[1]


def test_help_lists_every_command(sgpo):
    for arguments in ([], ["--help"]):
        _, out, err = sgpo(*arguments)
        assert all(command in out + err for command in COMMANDS)


@pytest.mark.parametrize("arguments", [["bogus"], ["plan"], ["report"], ["demo", "--seed", "x"], ["--bogus"]])
def test_arguments_that_no_command_takes_are_refused(sgpo, arguments):
    code, out, err = sgpo(*arguments)
    assert (code, out) == (2, "")
    assert "Traceback" not in err


@pytest.fixture
def there(tmp_path, monkeypatch):
    """In a folder with a profile, broken.parquet, an empty folder ``run`` and no more."""
    monkeypatch.chdir(tmp_path)
    save_profile(make_profile([1, 4, 8, 0]), tmp_path / "p.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "run").mkdir()
    return sorted(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("plan none.parquet", "none.parquet: no such profile"),
        ("plan broken.parquet", "broken.parquet: not a readable parquet file"),
        ("plan run", "run: is a folder; name the profile's file"),
        ("plan p.parquet --config-name nowhere", "nowhere"),
        ("plan p.parquet --config-dir nowhere", "--config-dir nowhere: no such folder"),
        ("plan p.parquet --config-dir", "--config-dir: needs a value"),
        ("plan p.parquet --verbose", "--verbose: unknown option"),
        ("plan p.parquet data.trian_batch_size=3", "data.trian_batch_size"),
        ("plan p.parquet data.train_batch_size=0", "data.train_batch_size=0: must be a positive integer"),
        ("plan p.parquet +sgpo=paper sgpo.profile.n=many", "sgpo.profile.n='many'"),
        ("plan p.parquet +sgpo=paper sgpo.group_size.max=4096", "sgpo.group_size.max=4096"),
        ("plan p.parquet +sgpo=paper sgpo.filter.max_pass_rate=0", "no prompt to train on"),
        ("plan p.parquet algorithm.filter_groups.enable=true", "algorithm.filter_groups.enable=True"),
        ("plan p.parquet algorithm.filter_groups=true", "algorithm.filter_groups=True: is a group of settings"),
        ("plan p.parquet algorithm=null", "does not compose"),
        ("plan p.parquet ~trainer.v1", "trainer.v1.trainer_mode: not in this configuration"),
        ("plan p.parquet +sgpo=papr", "Available options in 'sgpo': aero, bayes, greso, paper, prune"),
        ("plan p.parquet +sgpo=paper trainer.total_epochs=0", "trainer.total_epochs=0: must be a positive integer"),
        ("plan p.parquet actor_rollout_ref.model.path=3", "actor_rollout_ref.model.path=3"),
        ("plan p.parquet --plot /proc/plan.png", "--plot /proc/plan.png: cannot be written"),
        ("plan p.parquet --plot plan.jpg", "--plot plan.jpg: must be a .png file"),
        ("report none -o report.html", "none"),
        ("report run -o report.html", "run"),
        ("profile merge p.parquet -o sum.jsonl", "sum.jsonl: a profile is written as parquet; name it sum.parquet"),
        ("profile merge p.parquet -o .", ".: is a folder or a device"),
        ("profile merge p.parquet -o /dev/null", "/dev/null: is a folder or a device"),
        ("profile data.trian_files=x", "data.trian_files"),
        ("profile --verbose", "--verbose: unknown option"),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2_and_nothing_is_written(sgpo, there, tmp_path, arguments, words):
    code, _, err = sgpo(*arguments.split())
    assert code == 2
    assert err.startswith("sgpo: ")
    assert len(err.splitlines()) == 1
    assert words in err
    assert sorted(tmp_path.iterdir()) == there


@pytest.mark.parametrize(("encoding", "bar"), [("utf-8", "█"), ("latin-1", "?")])
def test_what_a_terminal_cannot_show_is_a_question_mark(there, encoding, bar):
    command = [sys.executable, "-m", "sgpo_verl.cli", "plan", "p.parquet"]
    shown = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True, check=True)
    assert 20 * bar in shown.stdout.decode(encoding)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a Linux device")
def test_a_full_disk_is_one_line(there):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "sgpo_verl.cli", "profile", "show", "p.parquet"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("sgpo: standard output cannot be written (")
    assert "Traceback" not in done.stderr


def test_profiles_are_merged_and_shown(sgpo, tmp_path):
    parts = []
    for seed, successes in enumerate([[3, 0], [1, 8]]):
        profile = make_profile(successes)
        metadata = replace(profile.metadata, passes=[{"id": str(seed), "seed": seed}])
        parts.append(save_profile(replace(profile, metadata=metadata), tmp_path / f"{seed}.parquet"))
    code, out, _ = sgpo("profile", "merge", *parts, "-o", tmp_path / "sum.parquet")
    assert (code, "2 prompts, 32 samples" in out) == (0, True)
    code, out, _ = sgpo("profile", "show", tmp_path / "sum.parquet")
    assert code == 0
    assert "2 prompts, 32 samples, mean pass rate 0.375" in out
    assert "fingerprint" in out and "0.2-0.3" in out


def test_failures_are_shown_with_their_reasons(sgpo, tmp_path):
    profile = make_profile([3, 0])
    table = profile.table.assign(trials=[8, 0], failure=[None, "[red]too long"])
    save_profile(replace(profile, table=table), tmp_path / "p.parquet")
    _, out, _ = sgpo("profile", "show", tmp_path / "p.parquet")
    assert "1 prompts failed" in out and "1x [red]too long" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["merge", "p.parquet", "p.parquet", "-o", "sum.parquet"], "p.parquet and p.parquet: both "),
        (["merge", "p.parquet", "none.parquet", "-o", "sum.parquet"], "none.parquet: no such profile"),
        (["show", "broken.parquet"], "broken.parquet: not a readable parquet file"),
        (["merge", "p.parquet", "-o", "run"], "run: is a folder or a device; name a file for the profile"),
    ],
)
def test_bad_profiles_are_one_line(sgpo, there, arguments, message):
    profile = make_profile([1])
    save_profile(
        replace(profile, metadata=replace(profile.metadata, passes=[{"id": "a", "seed": 0}])), Path("p.parquet")
    )
    code, _, err = sgpo("profile", *arguments)
    assert code == 2
    assert message in err and len(err.splitlines()) == 1
