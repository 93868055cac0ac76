import json
import re

import pytest
import torch
from present import present
from typer.testing import CliRunner

from entroloop.data.features import weights
from entroloop.launcher import doctor
from entroloop.launcher.__main__ import _register, app
from entroloop.selection.exact import canary, formats, sketch

_register()


def test_what_a_bug_report_needs(tmp_path, monkeypatch):
    monkeypatch.setenv(weights.VARIABLE, str(tmp_path))
    (tmp_path / "inception_v3_google-0cc3c7bd.pth").write_bytes(b"")
    found = doctor.examine(tmp_path)
    assert doctor.healthy(found)
    assert found["versions"]["torch"] == torch.__version__
    assert found["weights"] == {
        "folder": str(tmp_path), "inception": "no weights", "dinov2-small": "no weights",
        "dinov2-large": "no weights", "dinov2-paper": "no weights",
        "inception-paper": str(tmp_path / "inception_v3_google-0cc3c7bd.pth"),
    }  # fmt: skip
    chosen = formats.shortest_format(torch.zeros((1, 1)))
    assert f"features on cpu, {chosen.name} (chosen here)" in found["exactness"]
    assert "features on cpu, float64" in found["exactness"]
    assert all("within their certificates" in fact for fact in found["exactness"].values())
    assert found[f"folder {tmp_path}"]["hard links"] == "yes"
    assert "MiB/s" in found[f"folder {tmp_path}"]["written"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".tmp")]
    lines = doctor.text(found).splitlines()
    assert sum(not line.startswith(" ") for line in lines) == len(found)


def test_expected_times_follow_from_the_measured_speed():
    found = dict(doctor._speed())
    assert list(found) == ["products of features", "products of pixels", "nearest", "greedy"]
    for what, dtype in (("features", torch.float32), ("pixels", torch.uint8)):
        form, speed = found[f"products of {what}"].split(", ")
        assert form == formats.shortest_format(torch.zeros((1, 384), dtype=dtype)).name
        assert float(speed.removesuffix(" GFLOP/s")) > 1
    said = re.fullmatch(r"(\d+) million pairs/s; about (\S+) s for 100,000 x 384", found["nearest"])
    pairs, seconds = present(said).groups()
    assert float(seconds) == pytest.approx(5000 / float(pairs), rel=0.1)
    greedy = float(present(re.fullmatch(r"about (\S+) s for 65,536 -> 32,768 x 384", found["greedy"]))[1])
    assert greedy == pytest.approx(0.6 * 65536 * 32768 / 5e9 * float(seconds), rel=0.1)
    assert [doctor._short(x) for x in (368.2, 10.96, 0.9251)] == ["370", "11", "0.93"]


@pytest.mark.parametrize("form", [formats.BF16, formats.F32, formats.F64], ids=lambda form: form.name)
def test_a_product_that_is_less_exact_than_its_format_is_found(form, monkeypatch):
    rows = torch.randn((64, 32), generator=torch.Generator().manual_seed(0))
    assert "4,096 products within" in doctor._checked(rows, form)
    monkeypatch.setattr(canary, "product", lambda *arguments: _worse(sketch.product(*arguments), form))
    assert doctor._checked(rows, form).startswith(doctor.WRONG)


def _worse(products, form):
    out = products.clone()
    out[3, 7] = out[3, 7] * 2 if form is not formats.BF16 else torch.iinfo(torch.int16).max - 1000
    return out


def test_a_broken_part_is_reported_and_the_rest_is_examined(tmp_path, monkeypatch):
    def broken():
        raise RuntimeError("no driver")

    monkeypatch.setattr(doctor, "_devices", broken)
    ended = CliRunner().invoke(app, ["doctor", str(tmp_path), "--json"])
    assert ended.exit_code == 1
    found = json.loads(ended.stdout)
    assert found["devices"] == {"error": "WRONG: RuntimeError: no driver"}
    assert found["exactness"]
    ended = CliRunner().invoke(app, ["doctor", str(tmp_path / "none")])
    assert "none: no such folder" in str(ended.exception)


def test_an_error_of_sbatch_is_not_its_version(tmp_path, monkeypatch):
    sbatch = tmp_path / "sbatch"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for said, expected in (
        ("echo slurm 23.11.4", {"version": "slurm 23.11.4"}),
        ("echo 'sbatch: error: no server' >&2; exit 1", {"controller": "not found (sbatch: no server)"}),
        (
            "echo 'sbatch: error: no address' >&2; echo 'sbatch: fatal: no server' >&2; exit 1",
            {"controller": "not found (sbatch: no address; no server)"},
        ),
    ):
        sbatch.write_text(f"#!/bin/sh\n{said}\n")
        sbatch.chmod(0o755)
        found = dict(doctor._slurm())
        assert {key: found[key] for key in ("version", "controller") if key in found} == expected
