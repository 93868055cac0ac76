"""Training reads its set through `open_stream`. Both modes seal the same bytes. Damage is counted by choice only."""

import logging

import pytest
from loops import sealed_bytes, tiny

from entroloop.data.errors import UserError
from entroloop.data.runfolder import Layout, Step
from entroloop.data.world import World
from entroloop.launcher.run import runner

pytestmark = pytest.mark.slow

SHORT = ("generations=1", "data.limit=120", "data.shard_size=1", "train.kimg=0.16")  # more shards than `buffer`


def run(folder, *overrides, until=None):
    config = tiny(folder, *SHORT, *overrides)
    runner.run(config, World(), lambda: False, until=until)
    return Layout(config.run_folder)


def test_streaming_and_resident_training_seal_the_same_bytes(tmp_path):
    until = Step(0, "train")
    resident = run(tmp_path / "a", "data.mode=resident", until=until)
    streamed = run(tmp_path / "b", "data.mode=streaming", "data.workers=2", until=until)
    assert sealed_bytes(resident.run) == sealed_bytes(streamed.run)
    other = run(tmp_path / "c", "data.buffer=48", until=until)
    weights = [sealed_bytes(layout.of(until)) for layout in (resident, other)]
    assert weights[0] != weights[1]


def test_how_a_set_is_read_may_change_on_resume_and_damage_is_reported(tmp_path, caplog):
    layout = run(tmp_path, until=Step(0, "select"))
    shard = layout.of(Step(0, "select")) / "shard-000007.tar"
    raw = bytearray(shard.read_bytes())
    raw[600] ^= 255
    shard.write_bytes(bytes(raw))
    for mode in ("resident", "streaming"):
        with pytest.raises(UserError, match=r"shard-000007\.tar: damaged shard"):
            run(tmp_path, f"data.mode={mode}", "data.workers=0", until=Step(0, "train"))
    with caplog.at_level(logging.INFO, "entroloop"):
        run(tmp_path, "data.skip_damaged=true", "data.workers=0", until=Step(0, "train"))
    assert "1 damaged samples left out" in caplog.text
    assert "shard-000007.tar" in caplog.text
    assert '"damaged": 4' in layout.stats(0).read_text() or '"damaged": 3' in layout.stats(0).read_text()
    with pytest.raises(UserError, match=r"data\.buffer is 16 there, 4 here"):
        run(tmp_path, "data.buffer=4")
