"""xformers against torch's own attention."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from card.common import Card
from card.training_steps import Steps, data_of
from entroloop.data.errors import UserError
from entroloop.trainer.network import check_attention


def xformers(card: Card) -> None:
    backends: list[Any] = ["sdpa"]
    try:
        check_attention("xformers", card.device)
        backends.append("xformers")
    except UserError as error:
        card.row("xformers", str(error))
    data, batch = data_of(card, "ffhq64"), card.pick(32, 8)
    for precision in ("no", "bf16"):
        for backend in backends:
            steps = Steps(card, "ffhq64", batch, data, attention=backend, precision=precision)
            card.row(f"ffhq64, precision={precision}, {backend}", steps.rate(card.pick(10, 1)), "images/s")
            launches = card.kernels(lambda steps=steps: steps.run(1)).launches  # type: ignore[misc]
            names = [name[:60] for name in launches if "attention" in name.lower() or "fmha" in name.lower()]
            names += [name[:60] for name in launches if "flash" in name.lower()]
            card.row(f"kernels of attention, precision={precision}, {backend}", sorted({*names})[:4])
            steps.close()
    q, k, v = torch.randn(3, 8, 4, 256, 8, generator=torch.Generator().manual_seed(0))
    exact = (q.double() @ k.double().mT / 8**0.5).softmax(-1) @ v.double()
    found = scaled_dot_product_attention(*(x.to(card.device) for x in (q, k, v))).cpu().double()
    card.within("torch's attention in float32, error", float((found - exact).abs().max()), 1e-5)
