"""Devices: whether those of the run divide into what it makes of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sgpo_verl.errors import SgpoError
from sgpo_verl.run_config import group_at, is_count, value_at

ROLLOUT = "actor_rollout_ref.rollout"
ACTOR = "actor_rollout_ref.actor"


@dataclass(frozen=True)
class Devices:
    """trainers: devices that hold the actor. ranks: its data-parallel ranks. servers: of ``server`` devices each.

    apart: devices that only sample (separate_async).
    """

    trainers: int
    ranks: int
    server: int
    servers: int
    apart: int


def count_at(config: Mapping[str, Any], key: str) -> int:
    value = value_at(config, key)
    if not is_count(value):
        raise SgpoError(f"{key}={value!r}: must be a positive integer")
    return value


def devices_of(config: Mapping[str, Any]) -> Devices:
    """Raises SgpoError naming the keys that do not divide."""
    nodes, per_node = count_at(config, "trainer.nnodes"), count_at(config, "trainer.n_gpus_per_node")
    trainers = nodes * per_node
    said = f"trainer.nnodes x trainer.n_gpus_per_node = {nodes} x {per_node} = {trainers}"
    model, keys = _model_parallel(config)
    if trainers % model:
        raise SgpoError(f"{said}: does not divide by {keys} = {model}", "change the one or the other")
    server = 1
    for name in ("tensor_model", "data", "pipeline_model"):
        server *= count_at(config, f"{ROLLOUT}.{name}_parallel_size")
    if not separate(config):
        _check_servers(said, trainers, per_node, server)
        return Devices(trainers, trainers // model, server, trainers // server, 0)
    if group_at(config, "actor_rollout_ref").get("hybrid_engine", True):
        _check_servers(said, trainers, per_node, server)  # they sample too, before the first step
    nodes, per_node = (_given(config, f"{ROLLOUT}.{name}") for name in ("nnodes", "n_gpus_per_node"))
    apart = nodes * per_node
    said = f"{ROLLOUT}.nnodes x {ROLLOUT}.n_gpus_per_node = {nodes} x {per_node} = {apart}"
    _check_servers(said, apart, per_node, server)
    return Devices(trainers, trainers // model, server, apart // server, apart)


def _check_servers(said: str, devices: int, per_node: int, server: int) -> None:
    """Raises SgpoError if devices are left over, or a server would have to straddle two nodes."""
    straddles = server % per_node and per_node % server
    if devices % server or straddles:
        reason = "some would be left over" if devices % server else "one would straddle two nodes"
        raise SgpoError(
            f"{said}: does not divide into rollout servers of {server} devices "
            f"({ROLLOUT}.tensor_model_parallel_size and the like): {reason}",
            "change the one or the other",
        )


def separate(config: Mapping[str, Any]) -> bool:
    """Whether rollout has devices of its own."""
    return value_at(config, "trainer.v1.trainer_mode") in ("separate_async", "sgpo_separate_async")


def _given(config: Mapping[str, Any], key: str) -> int:
    """separate_async has no default for these."""
    value = value_at(config, key)
    if not is_count(value):
        mode = value_at(config, "trainer.v1.trainer_mode")
        raise SgpoError(
            f"{key}={value!r}: with trainer.v1.trainer_mode={mode}, rollout has devices of its own", f"set {key}"
        )
    return value


def _model_parallel(config: Mapping[str, Any]) -> tuple[int, str]:
    """(devices over which one copy of the actor is spread, data parallelism aside; the keys that say so)."""
    if value_at(config, f"{ACTOR}.strategy") == "megatron":
        group = f"{ACTOR}.megatron"
        keys = [f"{name}_parallel_size" for name in ("tensor_model", "pipeline_model", "context")]
        values = [count_at(config, f"{group}.{key}") for key in keys]
        return values[0] * values[1] * values[2], f"{group}.{' x '.join(keys)}"
    return sequence_parallel(config)


def sequence_parallel(config: Mapping[str, Any]) -> tuple[int, str]:
    """(devices that one sequence is split over, the key that says so)."""
    if value_at(config, f"{ACTOR}.strategy") == "megatron":
        key = f"{ACTOR}.megatron.context_parallel_size"
        return count_at(config, key), key
    key = f"{ACTOR}.ulysses_sequence_parallel_size"
    return (count_at(config, key) if "ulysses_sequence_parallel_size" in group_at(config, ACTOR) else 1), key


def check_devices(config: Mapping[str, Any]) -> str:
    """Devices, ranks and servers, in words."""
    devices = devices_of(config)
    if separate(config):
        _check_separate(config)
    ranks = f"{devices.ranks} data-parallel rank{'s' if devices.ranks > 1 else ''}"
    servers = f"{devices.servers} rollout server{'s' if devices.servers > 1 else ''} of {devices.server}"
    apart = f" on {devices.apart} more" if devices.apart else " on the same"
    return f"{devices.trainers} for training ({ranks}); {servers}{apart}"


def _check_separate(config: Mapping[str, Any]) -> None:
    """What verl's separate_async asserts after Ray, data and any profile: here it is said first."""
    mode = value_at(config, "trainer.v1.trainer_mode")
    backend = value_at(config, f"{ROLLOUT}.checkpoint_engine.backend")
    if backend == "naive":
        raise SgpoError(
            f"{ROLLOUT}.checkpoint_engine.backend=naive: trainer.v1.trainer_mode={mode} sends weights from device to device",
            "use nccl, nixl or mooncake",
        )
    batch, mini = count_at(config, "data.train_batch_size"), count_at(config, f"{ACTOR}.ppo_mini_batch_size")
    steps = count_at(config, "trainer.v1.separate_async.parameter_sync_step")
    if batch != steps * mini:
        raise SgpoError(
            f"data.train_batch_size={batch}: with trainer.v1.trainer_mode={mode} it must be "
            f"trainer.v1.separate_async.parameter_sync_step x {ACTOR}.ppo_mini_batch_size = {steps} x {mini} = {steps * mini}"
        )
    model = group_at(config, "reward.reward_model")
    if model.get("enable") and not model.get("enable_resource_pool"):
        raise SgpoError(
            f"reward.reward_model.enable=True: with trainer.v1.trainer_mode={mode} it needs devices of its own",
            "set reward.reward_model.enable_resource_pool=True",
        )
