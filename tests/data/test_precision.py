"""Products have full precision. Where a library breaks this, selection computes right results or refuses."""

import threading

import numpy as np
import pytest
import torch
from slow_references import nearest as slow_nearest

from entroloop.data import precision
from entroloop.data.errors import UserError
from entroloop.data.features import frozen
from entroloop.data.world import join
from entroloop.selection import kl_entropy, nearest, neighbours, select
from entroloop.selection.exact import canary, formats, frontier
from entroloop.selection.exact.intervals import InexactProductError
from entroloop.selection.rules import problem


def _now():
    return [precision._read(owner, name) for owner, name, _ in precision._settings()]


FULL = [wanted for _, _, wanted in precision._settings()]


@pytest.fixture(autouse=True)
def settings():
    """What a container or another library may have set; restored afterwards."""
    before = [(owner, name, precision._read(owner, name)) for owner, name, _ in precision._settings()]
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
    yield _now()
    for owner, name, value in before:
        precision._write(owner, name, value)


def test_the_last_call_to_leave_restores_what_the_first_found(settings):
    inside, leave = threading.Event(), threading.Event()

    def other():
        with precision.full_precision():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with precision.full_precision():
        thread.start()
        assert inside.wait(10)
        torch.set_float32_matmul_precision("medium")  # somebody switches it on again
        with precision.full_precision():
            assert _now() == FULL
    assert _now() == FULL
    leave.set()
    thread.join()
    assert _now() == settings


@pytest.mark.parametrize("newer", [False, True])
def test_older_settings_can_be_read_and_changed_during_a_call(settings, newer):
    """`torch.backends.cudnn.flags` reads them, in libraries and encoders of the user's own."""
    torch.backends.cudnn.allow_tf32 = True  # torch's default
    if newer and hasattr(torch.backends.cudnn, "conv"):
        torch.backends.cudnn.conv.fp32_precision = "ieee"
    before = _now()
    with precision.full_precision():
        assert _now() == FULL
        assert precision.is_full()
        assert not torch.backends.cudnn.allow_tf32
        with torch.backends.cudnn.flags(enabled=False):
            pass
    assert _now() == before
    assert not precision.is_full()


def test_an_encoder_in_one_thread_leaves_full_precision_to_another(settings):
    seen = []

    def forward(x):
        seen.append(_now())
        return torch.zeros(len(x), 4)

    encoder = frozen.Frozen(
        "inception", 4, (3, 8, 8), forward,
        weights=(), version=1, device=torch.device("cpu"),
    )  # fmt: skip
    images = np.zeros((8, 3, 8, 8), np.uint8)
    encoder(images)
    assert (seen, _now()) == ([FULL], settings)
    join(0, 1, device=torch.device("cpu"))  # a process of ours: nothing switches settings any more
    with precision.full_precision():
        assert _now() == FULL
    assert _now() == FULL


def test_selection_runs_in_full_precision(settings, monkeypatch):
    seen = []
    real = torch.mm

    def watched(*args, **options):
        seen.append(_now())
        return real(*args, **options)

    monkeypatch.setattr(torch, "mm", watched)
    x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    nearest(x, x, backend="torch")
    select(x, 9)
    assert seen
    assert all(values == FULL for values in seen)
    assert _now() == settings


def test_what_no_setting_can_undo_is_refused(settings, monkeypatch):
    x = np.ones((3, 2), np.float32)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    nearest(x, x)  # without a CUDA device there is nothing to override
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for call in (lambda: nearest(x, x), lambda: select(x, 1), lambda: join(0, 1, device=torch.device("cpu"))):
        with pytest.raises(UserError, match=r"^NVIDIA_TF32_OVERRIDE .*unset it or set it to 0$"):
            call()
    assert _now() == settings


def _split_k(splits):
    """bfloat16 products whose partial sums are added in bfloat16."""

    def mm(a, b, out):
        total = 0
        for part in torch.arange(a.shape[1]).tensor_split(splits):
            total = total + (a[:, part].float() @ b[part].float()).bfloat16()
        return out.copy_(total)

    return mm


def _tf32(a, b, out):
    """float32 products of rows that are rounded to 10 bits of mantissa."""
    assert a.dtype is torch.float32
    short = [((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32) for x in (a, b)]
    return out.copy_(short[0] @ short[1])


def _sets():
    r = np.random.default_rng(0)
    gaussian = r.normal(size=(512, 64))
    return {
        "gaussian": gaussian,
        "near-duplicates": np.repeat(gaussian[:64], 8, 0) + 1e-3 * r.normal(size=(512, 64)),
        "two clusters": 0.05 * gaussian + np.where(np.arange(512)[:, None] < 256, 1, -1),
    }


INEXACT = {"bfloat16 in 2 parts": (formats.BF16, _split_k(2)), "TF32": (formats.F32, _tf32)}
CALLS = {
    "nearest": lambda x: nearest(x[:128], x, 2, backend="torch")[1],
    "greedy": lambda x: select(x, 128).ids,
    "threshold-decay": lambda x: select(x, 128, "threshold-decay").ids,
    "entropy": lambda x: kl_entropy(x, 3).nats,
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", _sets())
@pytest.mark.parametrize("kind", INEXACT)
def test_products_that_are_less_exact_than_certified_never_give_wrong_ids(call, name, kind, monkeypatch):
    x = _sets()[name].astype(np.float32)
    expected = slow_nearest(x[:128], x, 2, False)[1] if call == "nearest" else CALLS[call](x)
    form, mm = INEXACT[kind]
    for module in (frontier, neighbours, problem):
        monkeypatch.setattr(module, "shortest_format", lambda *rows: form)
    monkeypatch.setattr(torch, "mm", mm)
    try:
        found = CALLS[call](x)
    except InexactProductError:
        return
    np.testing.assert_array_equal(found, expected)


def test_the_products_of_this_processor_are_proved():
    canary.prove(torch.device("cpu"))


@pytest.mark.parametrize("kind", INEXACT)
def test_a_device_with_less_exact_products_is_refused_with_the_settings_to_change(kind, monkeypatch):
    form, mm = INEXACT[kind]
    monkeypatch.setattr(canary, "shortest_format", lambda *rows: form)
    monkeypatch.setattr(torch, "mm", mm)
    with pytest.raises(UserError, match=rf"^cpu: {form.name} products .*: unset TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"):
        canary.prove.__wrapped__(torch.device("cpu"))
