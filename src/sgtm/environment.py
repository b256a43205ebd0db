"""The machine and the libraries that a run stands on."""

import ctypes
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("sgtm", "torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy")
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # <malloc.h>


def environment() -> dict[str, str | int]:
    """Versions and hardware, as plain values."""
    import torch

    about: dict[str, str | int] = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            about[package] = version(package)
        except PackageNotFoundError:
            about[package] = "not installed"
    about["torch"] = torch.__version__  # with the build, which the package's version may leave out
    about |= {"cores": os.cpu_count() or 0, "torch_threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        about |= {"gpu": torch.cuda.get_device_name(), "gpus": torch.cuda.device_count()}
    return about


def tune_malloc() -> bool:
    """Let glibc keep freed memory instead of giving it back and faulting it in again at every step.

    Returns whether it was done; other C libraries are left as they are.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
