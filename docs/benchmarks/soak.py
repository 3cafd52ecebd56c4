"""A long run of the real trainer: memory of its processes and sizes of its files, step by step.

python docs/benchmarks/soak.py FOLDER [STEPS]: trains the tests' tiny model and prints a line every 25 steps; needs no GPU.
RSS in MiB of verl's driver process (TaskRunnerV1: the trainer and this plugin), of all the run's processes together, and
bytes of the plugin's state in a checkpoint and of verl's log.
"""

import subprocess
import sys
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
import tiny

EVERY = 25


def main(folder: Path, steps: int) -> None:
    tiny.make_model(folder / "model")
    tiny.make_data(folder / "train.parquet", 2000)
    tiny.make_data(folder / "val.parquet", 8, seed=1)
    tiny.make_reward(folder / "reward.py")
    settings = {
        "algorithm.adv_estimator": None,
        "+sgpo": "paper",
        "sgpo.prune": True,
        "trainer.total_training_steps": steps,
    }
    settings |= {"trainer.save_freq": EVERY, "trainer.max_actor_ckpt_to_keep": 2, "trainer.test_freq": 50}
    profile = tiny.make_profile(
        folder, [4] * 1000 + [2] * 500 + [1] * 250 + [0] * 250, tiny.overrides(folder, **settings)
    )
    run = folder / "run"
    run.mkdir()
    command = tiny.command(run, tiny.overrides(folder, **settings, **{"sgpo.profile.path": profile}))
    with (run / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=run, env=tiny.environment(run), stdout=log, stderr=subprocess.STDOUT)
    print("step   driver MiB   all MiB   state bytes   log bytes / step", flush=True)
    shown = 0
    while process.poll() is None:
        time.sleep(2)
        done = lines_of(run / "metrics.jsonl")
        if done // EVERY > shown:
            shown = done // EVERY
            print(row(process.pid, run, done), flush=True)
    print(f"exit code {process.returncode}, {lines_of(run / 'metrics.jsonl')} steps")


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def row(pid: int, run: Path, done: int) -> str:
    """One line of the table."""
    driver = everything = 0.0
    for process in psutil.Process(pid).children(recursive=True):
        try:
            name, size = " ".join(process.cmdline()), process.memory_info().rss / 2**20
        except psutil.NoSuchProcess:
            continue
        everything += size
        driver += size if "TaskRunnerV1" in name else 0
    states = sorted((run / "checkpoints").glob("global_step_*/data.pt"), key=lambda path: path.stat().st_mtime)
    state = states[-1].stat().st_size if states else 0
    return (
        f"{done:4d} {driver:12.0f} {everything:9.0f} {state:13d} {(run / 'metrics.jsonl').stat().st_size / done:18.0f}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 300)
