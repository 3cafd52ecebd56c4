"""How fast `sgpo profile` samples and scores, beside vLLM's own offline ``LLM.generate(n=8)`` on the same prompts.

    python docs/benchmarks/profile_throughput.py --dir bench_profile [--prompts 4096] [--repeats 2] [--replicas 1 2]

Base model and task are the demo's. Every figure is samples per second once the engine is up, so start-up is in neither
side; ours includes scoring every sample and writing it to disk. Sides take turns, in one run, on one machine.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

N = 8
RESPONSE = 12  # tokens
ENVIRONMENT = {"VERL_PLATFORM": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}


def prepare(folder: Path, prompts: int) -> None:
    """The demo's base model, and ``prompts`` distinct numbers to double."""
    import pandas as pd

    from sgpo_verl.demo import base, task

    if not (folder / "base" / "config.json").exists():
        base.main([str(folder)])
    rng, numbers = random.Random(0), {}
    while len(numbers) < prompts:
        numbers.setdefault(task.draw(rng, rng.randint(4, 8)), len(numbers))
    rows = [
        {
            "data_source": task.DATA_SOURCE,
            "prompt": [{"role": "user", "content": number}],
            "reward_model": {"style": "rule", "ground_truth": task.answer(number)},
            "extra_info": {"index": index},
        }
        for number, index in numbers.items()
    ]
    pd.DataFrame(rows).to_parquet(folder / "prompts.parquet")


def arguments(folder: Path, replicas: int) -> list[str]:
    values = {
        "data.train_files": folder / "prompts.parquet",
        "data.val_files": folder / "prompts.parquet",
        "data.max_prompt_length": 16,
        "data.max_response_length": RESPONSE,
        "actor_rollout_ref.model.path": folder / "base",
        "reward.custom_reward_function.path": "pkg://sgpo_verl.demo.reward",
        "trainer.n_gpus_per_node": replicas,
        "+runtime": "cpu",
        "+sgpo": "paper",
        "sgpo.profile.n": N,
    }
    return [f"{key}={value}" for key, value in values.items()]


def offline(folder: Path) -> float:
    """Samples per second of ``LLM.generate``, with the engine settings that verl gives its servers."""
    import pandas as pd
    from vllm import LLM, SamplingParams

    from sgpo_verl.run_config import compose

    rollout = compose(arguments(folder, 1))["actor_rollout_ref"]["rollout"]
    names = ("dtype", "enforce_eager", "max_num_seqs", "max_num_batched_tokens", "enable_prefix_caching")
    llm = LLM(str(folder / "base"), max_model_len=16 + RESPONSE, **{name: rollout[name] for name in names})
    tokenizer = llm.get_tokenizer()
    messages = pd.read_parquet(folder / "prompts.parquet")["prompt"]
    prompts = [
        {"prompt_token_ids": tokenizer.apply_chat_template(list(m), add_generation_prompt=True, return_dict=False)}
        for m in messages
    ]
    sampling = SamplingParams(n=N, temperature=1.0, top_p=1.0, top_k=-1, max_tokens=RESPONSE)
    start = time.perf_counter()
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    return sum(len(output.outputs) for output in outputs) / (time.perf_counter() - start)


def ours(folder: Path, replicas: int) -> float:
    """Samples per second of the profiling worker, from the moment its servers are up to the last count on disk."""
    from sgpo_verl.binding import profile_command
    from sgpo_verl.binding.profiler import make_profile
    from sgpo_verl.run_config import compose, settings_of

    plain = compose(arguments(folder, replicas))
    target = profile_command.load_target(plain, settings_of(plain))
    seconds = []
    with profile_command.ray_running(target.config):
        profile = make_profile(
            target, folder / f"profile-{os.getpid()}.parquet", N, None, lambda tally: seconds.append(tally.seconds)
        )
    assert set(profile.table["trials"]) == {N}
    return profile.samples / seconds[-1]


def child(folder: Path, *side: object) -> float:
    command = [sys.executable, __file__, "--dir", str(folder), "--child", *map(str, side)]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.dir.resolve()
    if options.child:
        kind, *rest = options.child
        print(offline(folder) if kind == "offline" else ours(folder, int(rest[0])))
        return
    prepare(folder, options.prompts)
    sides = [("offline",), *(("ours", count) for count in options.replicas)]
    found: dict[tuple, list[float]] = {side: [] for side in sides}
    for _ in range(options.repeats):
        for side in sides:
            found[side].append(child(folder, *side))
            print(*side, f"{found[side][-1]:.0f} samples/s", flush=True)
    base = statistics.median(found[("offline",)])
    print(f"\n| {options.prompts} prompts x {N} | samples/s, median (all) | of LLM.generate |\n|---|---|---|")
    for side, rates in found.items():
        name = "LLM.generate" if side == ("offline",) else f"sgpo profile, {side[1]} replica(s)"
        middle = statistics.median(rates)
        print(f"| {name} | {middle:.0f} ({', '.join(f'{r:.0f}' for r in rates)}) | {middle / base:.2f} |")
    (folder / "result.json").write_text(json.dumps({" ".join(map(str, k)): v for k, v in found.items()}))


if __name__ == "__main__":
    main()
