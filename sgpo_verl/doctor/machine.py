"""What this machine has: accelerators, and a Ray cluster to join. Another may be the one that trains: nothing is refused."""

import os
import socket
from collections.abc import Iterator

from sgpo_verl.checks.findings import Check, Doubt

ANSWER = 3.0  # seconds that the head of a cluster may take


def checks() -> Iterator[Check]:
    yield "accelerators", _accelerators
    yield "Ray cluster", _ray


def _accelerators(_: None) -> str:
    import torch

    if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
        return f"none asked for (VERL_PLATFORM=cpu); {os.cpu_count()} CPU cores"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise Doubt(
            "torch sees no GPU on this machine",
            "train where there are some, or with VERL_PLATFORM=cpu and +runtime=cpu",
        )
    names = {torch.cuda.get_device_name(i) for i in range(count)}
    memory = min(torch.cuda.get_device_properties(i).total_memory for i in range(count)) / 2**30
    return f"{count} x {', '.join(sorted(names))}, {memory:.0f} GiB each"


def _ray(_: None) -> str:
    address = os.environ.get("RAY_ADDRESS", "")
    if not address:
        return "RAY_ADDRESS is not set: a run joins a cluster that runs on this machine, or starts one"
    if address.startswith("ray://") or address in ("auto", "local"):
        return f"RAY_ADDRESS={address}: not looked at"
    host, _colon, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=ANSWER):
            pass
    except (OSError, ValueError) as error:
        raise Doubt(f"RAY_ADDRESS={address} does not answer ({error})", "start Ray there, or unset it") from None
    return f"RAY_ADDRESS={address}: {_resources(address)}"


def _resources(address: str) -> str:
    """Nodes and devices, asked as a driver that leaves again."""
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise Doubt(f"the cluster at {address} refuses us ({' '.join(str(error).split())[:200]})") from None
    try:
        have, nodes = ray.cluster_resources(), [node for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()
    return f"{len(nodes)} nodes, {have.get('GPU', 0):g} GPUs, {have.get('CPU', 0):g} CPU cores"
