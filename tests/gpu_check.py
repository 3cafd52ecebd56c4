"""Five real steps each of stock GRPO and of sGPO, on FSDP2 and on Megatron, and what they did, as a table to tick off.

    python tests/gpu_check.py                                  on one GPU: fsdp2 and megatron
    VERL_PLATFORM=cpu python tests/gpu_check.py --cpu          without one: fsdp2; megatron too where megatron-core is installed

Without Transformer Engine, Megatron runs on its own plain layers (megatron_plain.py).

A random Llama of 0.2M parameters is made on the spot, with 48 prompts and a profile for groups of 2, 4 and 8. Group sizes
are read from verl's own rollout dump (trainer.rollout_data_dir: one JSON line per rollout, its uid begins with its group's)
and held against the plan. Exit status 1 if a line of the table is not as it must be.
"""

import argparse
import os
import subprocess
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import tiny
from megatron_plain import SETTINGS
from paper_run import GROUP_SIZE, SUCCESSES, UNSOLVED, groups_of_step, rows_of

PACKAGES = ("verl", "vllm", "torch", "ray", "transformers", "megatron-core", "mbridge", "transformer-engine")
GPU = {
    "+runtime": None,
    "actor_rollout_ref.rollout.name": "vllm",
    "actor_rollout_ref.rollout.gpu_memory_utilization": 0.3,
    "actor_rollout_ref.rollout.tensor_model_parallel_size": 1,
}
FSDP2 = {
    "actor_rollout_ref.actor.strategy": "fsdp2",
    "actor_rollout_ref.model.use_remove_padding": False,
    "+actor_rollout_ref.model.override_config.attn_implementation": "sdpa",
}
MEGATRON = {"model_engine": "megatron", "actor_rollout_ref.actor.megatron.vanilla_mbridge": True}
ENGINES = ("fsdp2", "megatron")
# +runtime=cpu is written for FSDP2: what it says of that engine is taken out again.
NO_FSDP = ["~actor_rollout_ref.actor.fsdp_config", "~actor_rollout_ref.ref.fsdp_config"]
MEGATRON_ON_CPU = {
    "actor_rollout_ref.actor.strategy": "megatron",
    "++actor_rollout_ref.actor.megatron.override_transformer_config.use_cpu_initialization": True,
}


def settings(engine: str, cpu: bool, steps: int) -> dict:
    chosen = {
        "trainer.total_training_steps": steps,
        "trainer.n_gpus_per_node": 1,
        "trainer.nnodes": 1,
        "sgpo.filter.unsolved_fraction": 0.25,
    }
    if not cpu:
        chosen |= GPU
    if engine == "megatron":
        chosen |= MEGATRON | (MEGATRON_ON_CPU if cpu else {}) | ({} if find_spec("transformer_engine") else SETTINGS)
    elif not cpu:
        chosen |= FSDP2
    return chosen


def environment(engine: str, cpu: bool, run: Path) -> dict[str, str]:
    """That of a run. verl loads the modules that VERL_USE_EXTERNAL_MODULES names in each of its processes."""
    found = {**os.environ, "VERL_FILE_LOGGER_PATH": str(run / "metrics.jsonl"), "HF_HUB_OFFLINE": "1"}
    if cpu:
        found |= {"VERL_PLATFORM": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1"}
    if engine == "megatron":
        found["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
        if cpu or not find_spec("transformer_engine"):
            found["VERL_USE_EXTERNAL_MODULES"] = "megatron_cpu" if cpu else "megatron_plain"
            here = str(Path(__file__).resolve().parent)
            found["PYTHONPATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    return found


def train(run: Path, arguments: list[str], environment: dict[str, str]) -> int:
    run.mkdir(parents=True, exist_ok=True)
    command = tiny.command(run, arguments)
    (run / "command").write_text(" \\\n    ".join(command) + "\n")
    with (run / "log").open("w") as log:
        return subprocess.run(command, cwd=run, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode


def faults(run: Path, steps: int, planned: bool, row_of: dict[str, int]) -> list[str]:
    """What is not as it must be. planned: groups of the plan's sizes, 64 rollouts a step; else stock verl's, 8 of 8."""
    logged, found = tiny.metrics(run), []
    if len(logged) != steps:
        found.append(f"{len(logged)} steps logged")
    for step in range(1, len(logged) + 1):
        groups = groups_of_step(run, step, row_of)
        if sum(n for _, n in groups) != 64:
            found.append(f"step {step}: {sum(n for _, n in groups)} rollouts")
        for row, n in groups:
            allowed = {8} if not planned else {2, 4, 8} if row in UNSOLVED else {GROUP_SIZE.get(row)}
            if n not in allowed:
                found.append(f"step {step}: prompt {row} in a group of {n}")
    return found


def line(engine: str, who: str, run: Path, status: int, wrong: list[str], row_of: dict[str, int]) -> str:
    logged = tiny.metrics(run)
    steps = range(1, len(logged) + 1)
    sizes = Counter(n for step in steps for _, n in groups_of_step(run, step, row_of))
    seconds = sum(m["timing_s/step"] for m in logged[1:]) / max(1, len(logged) - 1)
    norms = [m.get("actor/grad_norm", 0.0) for m in logged]
    verdict = "ok" if not (status or wrong) else f"exit {status}; {'; '.join(wrong[:3])}" if wrong else f"exit {status}"
    groups = ", ".join(f"{count} of {size}" for size, count in sorted(sizes.items()))
    return f"| {engine} | {who} | {len(logged)} | {groups} | {min(norms, default=0):.3g} | {seconds:.1f} | {verdict} |"


def versions() -> str:
    def of(package: str) -> str:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            return f"{package} -"

    return ", ".join(map(of, PACKAGES))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", action="append", choices=ENGINES, help="default: all that the machine can")
    parser.add_argument("--cpu", action="store_true", help="with verl's CPU runtime")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("gpu_check"))
    parser.add_argument("more", nargs="*", help="further overrides, key=value, for every run")
    asked = parser.parse_args()
    folder = asked.out.resolve()
    tiny.make_model(folder / "model", layers=4, tied=False)  # which Megatron can cut into stages, interleaved too
    tiny.make_data(folder / "train.parquet", 48)
    tiny.make_data(folder / "val.parquet", 8, seed=1)
    tiny.make_reward(folder / "reward.py")
    row_of, lines, bad = rows_of(folder), [], False
    for engine in asked.engine or [e for e in ENGINES if e == "fsdp2" or find_spec("mbridge")]:
        base = settings(engine, asked.cpu, asked.steps)
        more = asked.more + (NO_FSDP if asked.cpu and engine == "megatron" else [])
        of_sgpo = tiny.overrides(folder, **base, **{"algorithm.adv_estimator": None, "+sgpo": "paper"}) + more
        stock = [a for a in tiny.overrides(folder, **base) if not a.startswith("sgpo.")] + more
        of_sgpo.append(f"sgpo.profile.path={tiny.make_profile(folder, SUCCESSES, of_sgpo)}")
        for who, arguments in (("stock GRPO", stock), ("sGPO", of_sgpo)):
            run = folder / f"{engine}_{who.split()[0].lower()}"
            print(f"{engine}, {who}: {run / 'log'}", flush=True)
            status = train(run, arguments, environment(engine, asked.cpu, run))
            wrong = faults(run, asked.steps, who == "sGPO", row_of)
            bad = bad or bool(status or wrong)
            lines.append(line(engine, who, run, status, wrong, row_of))
    print(
        f"\n{versions()}\n\n| engine | run | steps | groups | least gradient norm | s a step | |\n|---|---|---|---|---|---|---|"
    )
    print("\n".join(lines))
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
