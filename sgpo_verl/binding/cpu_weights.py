"""Weights from the trainer to standalone rollout servers on a machine without an accelerator: checkpoint engine ``cpu``.

The trainer mode ``separate_async`` needs an engine, and all that verl has (nccl, nixl, mooncake, ...) want a device. Here
the trainer's rank 0 sends every full tensor over one TCP connection (ZeroMQ) to each rollout worker. verl imports this
file, which registers the engine, wherever it makes one: ``conf/runtime/cpu.yaml`` names it as ``custom_backend_module``.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable

import ray
import torch
import zmq
import zmq.asyncio
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry

_HELD = 2  # messages held back on either side: a slow receiver stops the sender, not the machine's memory
_END = [b""]


@CheckpointEngineRegistry.register("cpu")
class CpuCheckpointEngine(CheckpointEngine):
    """One update: ``prepare`` and ``init_process_group`` everywhere, then send and receive, then ``finalize``.

    Args: verl's; neither is needed, since tensors travel one by one and ``build_topology`` says who sends.
    """

    def __init__(self, bucket_size: int, is_master: bool = False):
        self._inbox: zmq.asyncio.Socket | None = None
        self._outboxes: list[zmq.asyncio.Socket] = []

    def prepare(self) -> str:
        """Open an inbox and return its address. An engine does not know its side; the trainer's inboxes stay empty."""
        self._inbox = self._socket(zmq.PULL)
        host = f"tcp://{ray.util.get_node_ip_address()}"
        return f"{host}:{self._inbox.bind_to_random_port(host)}"

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[str]
    ) -> tuple[dict[str, list[list[str]]], dict[str, list[list[str]]]]:
        """``metadata``: the addresses, trainer first. Only the trainer's rank 0 gets the rollout workers'."""
        receivers = metadata[actor_wg_world_size:]
        nobody: list[list[str]] = [[] for _ in range(actor_wg_world_size - 1)]
        return {"receivers": [receivers, *nobody]}, {"receivers": [[] for _ in range(rollout_world_size)]}

    def init_process_group(self, receivers: list[str]) -> None:
        for address in receivers:
            self._outboxes.append(self._socket(zmq.PUSH))
            self._outboxes[-1].connect(address)

    async def send_weights(self, weights: Iterable[tuple[str, torch.Tensor]], global_steps: int | None = None) -> None:
        """Walk ``weights`` on every rank, since gathering a tensor takes all of them; only rank 0 has receivers."""
        for name, tensor in weights:
            header = json.dumps([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]).encode()
            await self._send([header, tensor.detach().reshape(-1).view(torch.uint8).numpy()])
        await self._send(_END)

    async def receive_weights(self, global_steps: int | None = None) -> AsyncIterator[tuple[str, torch.Tensor]]:
        assert self._inbox is not None, "verl prepares an engine before it receives"
        while (message := await self._inbox.recv_multipart()) != _END:
            name, dtype, shape = json.loads(message[0])
            yield name, torch.frombuffer(bytearray(message[1]), dtype=getattr(torch, dtype)).reshape(shape)

    def finalize(self) -> None:
        """Close the connections. verl calls this when every receiver has all it waited for."""
        for socket in [self._inbox, *self._outboxes]:
            if socket is not None:
                socket.close(linger=0)
        self._inbox, self._outboxes = None, []

    async def _send(self, message: list) -> None:
        await asyncio.gather(*(socket.send_multipart(message) for socket in self._outboxes))

    def _socket(self, kind: int) -> zmq.asyncio.Socket:
        socket = zmq.asyncio.Context.instance().socket(kind)
        socket.set_hwm(_HELD)
        return socket
