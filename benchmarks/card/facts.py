"""The machine, and torch's settings before and after entroloop's."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

from card.common import Card
from entroloop.data import precision
from entroloop.selection.exact import canary

QUERY = "name,driver_version,memory.total,power.limit,clocks.max.sm,compute_mode,mig.mode.current"
PACKAGES = ("numpy", "accelerate", "diffusers", "transformers", "torchmetrics", "deepspeed", "xformers", "faiss-gpu")
FLAGS = ("allow_tf32", "allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")


def facts(card: Card) -> None:
    for name in FLAGS:
        card.row(f"torch's default of cuda.matmul.{name}", getattr(torch.backends.cuda.matmul, name))
    card.row("torch's default of cudnn.allow_tf32", torch.backends.cudnn.allow_tf32)
    for name in ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "NVIDIA_TF32_OVERRIDE", "CUDA_VISIBLE_DEVICES"):
        card.row(name, os.environ.get(name, "not set"))
    card.row("python", platform.python_version())
    card.row("torch", torch.__version__)
    card.row("CUDA of torch", torch.version.cuda or "none")
    if not card.pretended:
        card.row("cuDNN", torch.backends.cudnn.version())
        card.row("NCCL", ".".join(map(str, torch.cuda.nccl.version())))
    for name in PACKAGES:
        try:
            card.row(name, version(name))
        except PackageNotFoundError:
            card.row(name, "not installed")
    card.row("device", torch.cuda.get_device_name())
    card.row("compute capability", ".".join(map(str, torch.cuda.get_device_capability())))
    card.row("cores", len(os.sched_getaffinity(0)))
    card.row("/dev/shm", shutil.disk_usage("/dev/shm").total / 2**30, "GiB")
    if shutil.which("nvidia-smi"):
        asked = subprocess.run(
            ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"], capture_output=True, text=True
        )
        card.row(f"nvidia-smi {QUERY}", (asked.stdout or asked.stderr).strip())
    canary.prove(card.device)  # raises where a product is less exact than its certificate
    card.verdict("the canary accepts this device's products", True)
    card.verdict("TF32 and reduced sums are off in a process of entroloop", precision.is_full())
