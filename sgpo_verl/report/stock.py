"""What a run of unmodified verl cost, from what verl itself logs: GRPO and its dynamic sampling.

Stock verl logs no FLOPs and no group statistics. Both follow from its log and its config, with the formulas of
``cost.py`` that our own runs use, so that the two sides of a ratio are counted alike.
"""

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from sgpo_verl.cost import ModelShape, StepTokens, step_flops
from sgpo_verl.errors import SgpoError
from sgpo_verl.report.runlog import read_json_lines, training_rows

FILTERED = "training/filter_groups/evicted_samples"
SURPLUS = "training/filter_groups/discarded_surplus_samples"
STALE = "training/off_policy/evicted_samples"
FAILED = "training/rollout_failure/evicted_samples"
NEEDED = ("prompt_length/mean", "response_length/mean", "perf/total_num_tokens", "timing_s/step")


@dataclass(frozen=True)
class StockSettings:
    """The part of a stock run's config that decides its cost.

    groups: data.train_batch_size. group_size: rollout.n. mini_batch: actor.ppo_mini_batch_size, in groups; verl pads
    the rows of a step to a multiple of it. scoring_passes, epochs: as in StepTokens. dynamic: group filtering is on.
    """

    groups: int
    group_size: int
    mini_batch: int
    scoring_passes: int
    epochs: int
    dynamic: bool


def stock_steps(log: pd.DataFrame, settings: StockSettings, shape: ModelShape, source: Path) -> pd.DataFrame:
    """Per step: rollouts, trained_rollouts, generated_tokens, trained_tokens, generate_flops, train_flops,
    group_size, frac_mixed, step_seconds (columns of ``Run.table``), and estimated_tokens; zeros in rows that only validated.

    Groups that dynamic sampling threw away, filtered or left over, and those that an async trainer's staleness rule or a
    failure did, count as generated, at the mean lengths of those kept: verl logs their number and nothing else of them
    (estimated_tokens). It waits for what it has begun before a step ends, so no group goes uncounted.
    ``perf/total_num_tokens`` is prompt and response of all rows that were trained on, padding rows included.
    Raises SgpoError naming ``source`` and the metric that the log lacks.
    """
    for key in NEEDED:
        if key not in log:
            raise SgpoError(f"{source}: the log has no {key} - it is not one of verl's V1 trainer, cost unknown")
    trained = training_rows(log)
    discarded = sum(_column(log, key) for key in (FILTERED, SURPLUS, STALE, FAILED))
    groups = (settings.groups + discarded) * trained
    rollouts = groups * settings.group_size
    table = pd.DataFrame(
        {
            "rollouts": rollouts,
            "trained_rollouts": settings.groups * settings.group_size * trained,
            "prompt_tokens": _column(log, NEEDED[0]) * groups,
            "generated_tokens": _column(log, NEEDED[0]) * groups + _column(log, NEEDED[1]) * rollouts,
            "estimated_tokens": discarded
            * trained
            * (_column(log, NEEDED[0]) + _column(log, NEEDED[1]) * settings.group_size),
            "trained_tokens": _column(log, NEEDED[2]),
            "group_size": np.where(trained, float(settings.group_size), np.nan),
            "frac_mixed": _mixed_after_filtering(log, settings).where(trained),
            "step_seconds": _column(log, NEEDED[3]),
        },
        index=log.index,
        dtype=float,
    )
    table["generate_flops"], table["train_flops"] = _flops(table, settings, shape).T
    return table


def _flops(table: pd.DataFrame, settings: StockSettings, shape: ModelShape) -> np.ndarray:
    """(steps, 2): FLOPs to generate, FLOPs to score and train."""
    rows = math.ceil(settings.groups / settings.mini_batch) * settings.mini_batch * settings.group_size
    columns = [table[name].tolist() for name in ("rollouts", "prompt_tokens", "generated_tokens", "trained_tokens")]
    steps = [
        StepTokens(
            groups=rollouts / settings.group_size,
            prompt_tokens=prompt_tokens,
            rows=rollouts,
            response_tokens=generated_tokens - prompt_tokens,
            trained=trained_tokens,
            trained_rows=rows,
            scoring_passes=settings.scoring_passes,
            epochs=settings.epochs,
        )
        for rollouts, prompt_tokens, generated_tokens, trained_tokens in zip(*columns, strict=True)
    ]
    return np.array([step_flops(shape, step) for step in steps])


def _column(log: pd.DataFrame, key: str) -> pd.Series:
    """A metric that verl leaves out of steps where it is nothing."""
    return log[key].fillna(0.0) if key in log else pd.Series(0.0, index=log.index)


def _mixed_after_filtering(log: pd.DataFrame, settings: StockSettings) -> pd.Series:
    """Share of mixed groups under dynamic sampling: it keeps mixed groups only, so what it evicted was not mixed."""
    if not settings.dynamic:
        return pd.Series(np.nan, index=log.index)
    mixed = settings.groups + _column(log, SURPLUS)
    return mixed / (mixed + _column(log, FILTERED))


def mixed_from_dumps(directory: Path) -> pd.Series:
    """Share of mixed groups per step, from verl's rollout dumps (``<step>.jsonl``); empty where there are none.

    A row's uid is ``<group>_<session>_<output>``; the last output of a session carries its score. A group is mixed if
    its sessions' scores differ. Padding rows (group ``pad...``) are no rollouts. Raises SgpoError on a bad line.
    """
    shares = {}
    for path in directory.glob("*.jsonl"):
        if not path.stem.isdecimal():
            continue
        last: dict[str, dict[str, tuple[int, float | None]]] = defaultdict(dict)
        for n, row in read_json_lines(path):
            group, session, output = _split_uid(row.get("uid"), path, n)
            if group.startswith("pad"):
                continue
            if "score" not in row:
                raise SgpoError(f"{path}, line {n}: no score - not a rollout dump of verl's")
            if not isinstance(row["score"], int | float | None):
                raise SgpoError(f"{path}, line {n}: its score is no number - not a rollout dump of verl's")
            if output >= last[group].get(session, (0, 0.0))[0]:
                last[group][session] = (output, row["score"])
        if last:
            mixed = [len({score for _, score in sessions.values()}) > 1 for sessions in last.values()]
            shares[int(path.stem)] = sum(mixed) / len(mixed)
    return pd.Series(shares, dtype=float).sort_index()


def _split_uid(uid: object, path: Path, n: int) -> tuple[str, str, int]:
    parts = uid.rsplit("_", 2) if isinstance(uid, str) else []
    if len(parts) != 3 or not parts[2].isdecimal():
        raise SgpoError(
            f"{path}, line {n}: uid {uid!r} is not <group>_<session>_<output> - not a rollout dump of verl's"
        )
    return parts[0], parts[1], int(parts[2])
