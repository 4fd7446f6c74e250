"""Functions of tensors compiled for the machine at hand."""

import os
import shutil
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
import torch._dynamo

Given = ParamSpec("Given")
Found = TypeVar("Found")


def compiled(
    function: Callable[Given, Found], device: torch.device, *, is_small: bool = False
) -> Callable[Given, Found]:
    """The function, compiled at its first call for the shapes it meets there; equal to rounding.

    `is_small`: what it works on is so little that threads would cost more than they save. On a processor this needs a
    C++ compiler: where there is none, a warning says so, and the function comes back as it is.
    """
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        warnings.warn("no C++ compiler was found (g++ or clang++): nothing is compiled", stacklevel=2)
        return function
    if hasattr(torch._dynamo.config, "trace_autograd_ops"):  # or a gradient is taken outside, and costs more calls
        torch._dynamo.config.trace_autograd_ops = True
    # Tables are made once by functions with a cache: to trace through these is what is wanted.
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
    if device.type != "cpu":
        return torch.compile(function, dynamic=False)
    # Kernels that are called from C++ save a third of what a step of 16 teams takes.
    one_thread = {"cpp.threads": 1} if is_small else {}
    return torch.compile(function, dynamic=False, options={"cpp_wrapper": True, **one_thread})
