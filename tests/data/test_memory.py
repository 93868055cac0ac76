"""Memory: free memory of a GPU, and work that runs out of memory."""

import numpy as np
import pytest
import torch

from entroloop.data import memory
from entroloop.data.errors import Failed


def test_free_memory_of_a_gpu_counts_what_torch_holds_in_reserve(monkeypatch):
    for name, value in {"mem_get_info": (10, 100), "memory_reserved": 7, "memory_allocated": 3}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert memory.free_bytes(torch.device("cuda", 0)) == 14


def _gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines")


def _cublas():
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


@pytest.mark.parametrize("work", [_gpu, _cublas, lambda: torch.empty(1 << 50), lambda: np.empty(1 << 50)])
def test_work_that_runs_out_of_memory_ends_with_one_line(work):
    with pytest.raises(Failed, match=r"^out of memory \(.*\): lower the key$"), memory.enough_memory("lower the key"):
        work()


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="else"), memory.enough_memory("lower the key"):
        raise RuntimeError("something else")
    inner = memory.enough_memory("lower the other key")
    with pytest.raises(Failed, match=r"other key$"), memory.enough_memory("lower the key"), inner:
        _gpu()
