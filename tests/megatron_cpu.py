"""megatron-core and mbridge on a machine without CUDA: what stands in for it, so that verl's Megatron engine runs as it is.

Loaded in every process by ``VERL_USE_EXTERNAL_MODULES=megatron_cpu``. Megatron asks for CUDA by name in four places: the device
of new tensors, the type of a parameter, its random state for dropout (there is none here), and the fused layers of Transformer
Engine (megatron_plain.py).
"""

import contextlib

import megatron_plain  # noqa: F401
import torch
import wrapt


def on_cpu(wrapped, instance, args, kwargs):
    return wrapped(*args, **{**kwargs, "device": "cpu"} if kwargs.get("device") == "cuda" else kwargs)


def no_cuda() -> None:
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.synchronize = lambda device=None: None
    torch.nn.Module.cuda = lambda self, device=None: self
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    for name in ("tensor", "zeros", "ones", "empty", "full"):
        wrapt.wrap_function_wrapper(torch, name, on_cpu)

    @wrapt.patch_function_wrapper(torch.Tensor, "type")
    def type_of(wrapped, instance, args, kwargs):
        said = wrapped(*args, **kwargs)
        return said.replace("torch.", "torch.cuda.") if isinstance(said, str) else said


def no_random_state(random) -> None:
    random.CudaRNGStatesTracker.fork = lambda self, name=None: contextlib.nullcontext()


def no_random_seed(tensor_parallel) -> None:
    tensor_parallel.model_parallel_cuda_manual_seed = lambda *args, **kwargs: None


def single_precision(engine) -> None:
    """verl takes half precision only; a comparison with a formula needs float32."""
    check = engine.McoreEngineConfig.__post_init__

    def __post_init__(self):
        wanted = self.dtype
        object.__setattr__(self, "dtype", "bfloat16")
        check(self)
        object.__setattr__(self, "dtype", wanted)

    engine.McoreEngineConfig.__post_init__ = __post_init__


no_cuda()
wrapt.when_imported("verl.workers.config.engine")(single_precision)
wrapt.when_imported("megatron.core.tensor_parallel.random")(no_random_state)
wrapt.when_imported("megatron.core.tensor_parallel")(no_random_seed)
