"""`hf:` through `datasets`, offline: image folders, Parquet, saved sets and the cache; and `datasets` on our shards."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image
from present import present

from entroloop.data.errors import UserError
from entroloop.data.sources import hub
from entroloop.data.sources.importer import import_dataset
from entroloop.data.sources.recognise import open_source
from entroloop.data.sources.settings import Settings
from entroloop.data.store.dataset import Dataset


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """The library with a cache of its own and without the network."""
    found = pytest.importorskip("datasets")
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("cache")
        patch.setattr(found.config, "HF_DATASETS_CACHE", cache)
        patch.setattr(found.config, "HF_HUB_OFFLINE", True)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield found


def pixels(label, i):
    return np.full((8, 8, 3), 40 * label + i, np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two splits of images in class folders, as `load_dataset(FOLDER)` takes them."""
    root = tmp_path_factory.mktemp("hub") / "images"
    for split, count in (("train", 5), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(pixels(label, i)).save(root / split / name / f"{i}.png")
    return root


@pytest.mark.parametrize(("split", "count", "workers"), [(None, 5, 2), ("train", 5, 1), ("test", 2, 1)])
def test_an_image_folder_is_imported_with_its_classes(datasets, folder, tmp_path, split, count, workers):
    import_dataset(f"hf:{folder}", tmp_path / "out", Settings(split=split, shard_size=3), workers=workers)
    found = Dataset(tmp_path / "out")
    expected = np.stack([pixels(label, i).transpose(2, 0, 1) for label in (0, 1) for i in range(count)])
    assert np.array_equal(found.all(), expected)
    assert present(found.labels).tolist() == [0] * count + [1] * count
    assert found.manifest.about["classes"] == ["cat", "dog"]
    assert found.provenance.source[0] == f"{split or 'train'}/0"


def saved(datasets, folder, columns, features=None):
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(folder))
    return f"hf:{folder}"


VECTORS = [[0.5, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.5]]


def test_vectors_and_labels_of_a_saved_set(datasets, tmp_path):
    features = datasets.Features(
        {
            "x": datasets.List(datasets.Value("float64")),
            "target": datasets.Value("int64"),
            "note": datasets.Value("string"),
        }
    )
    source = saved(datasets, tmp_path / "s", {"x": VECTORS, "target": [2, 0, 1], "note": ["a", "b", "c"]}, features)
    import_dataset(source, tmp_path / "out")
    found = Dataset(tmp_path / "out")
    assert np.array_equal(found.all(), np.array(VECTORS, np.float32))
    assert present(found.labels).tolist() == [2, 0, 1]
    assert found.manifest.about["import"]["ignored"] == {"of another kind": 1}
    import_dataset(source, tmp_path / "plain", Settings(labels=False))
    assert not Dataset(tmp_path / "plain").labelled


def test_parquet_on_the_hub_is_read_from_the_cache(datasets, folder, tmp_path):
    """The table stores the images' bytes, and the second time the folder of the set is read from the cache."""
    table = datasets.load_dataset(str(folder), split="train")
    (tmp_path / "set").mkdir()
    table.to_parquet(str(tmp_path / "set" / "train.parquet"))
    first: Any = open_source(f"hf:{tmp_path / 'set'}")
    again: Any = open_source(f"hf:{tmp_path / 'set'}")
    assert first.payload.table.cache_files == again.payload.table.cache_files != []
    assert np.array_equal(np.asarray(next(iter(again.read([9])))), pixels(1, 4))
    assert again.classes == ("cat", "dog")


def test_what_cannot_be_loaded_is_one_line(datasets, folder, tmp_path, monkeypatch):
    two = {"a": VECTORS, "b": VECTORS}
    several = saved(datasets, tmp_path / "several", two)
    ragged = saved(datasets, tmp_path / "ragged", {"x": [[1.0], [1.0, 2.0]]})
    words = saved(datasets, tmp_path / "words", {"word": ["a", "b"]})
    infinite = saved(datasets, tmp_path / "infinite", {"x": [[1.0], [float("inf")]]})
    (tmp_path / "empty").mkdir()
    for source, key, split, message in (
        ("hf:nobody/nothing", None, None, "hf:nobody/nothing: cannot be loaded .*Hub"),
        (f"hf:{tmp_path / 'empty'}", None, None, "empty: cannot be loaded"),
        (f"hf:{folder}", None, "validation", "--split validation: .* has test and train"),
        (f"hf:{folder}", "label", None, "--key label: .*columns of images or vectors: image"),
        (several, None, None, "give --key a or b"),
        (several, None, "test", "--split test: .* has train"),
        (ragged, None, None, "x: row 1 has 2 numbers, row 0 has 1"),
        (words, None, None, "no column of images or vectors among word"),
        (infinite, None, None, "infinite.*row 1"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            open_source(source, split, key=key)
        assert "\n" not in str(caught.value)
    opened: Any = open_source(several, key="b")
    assert np.array_equal(opened.array[:], np.array(VECTORS))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"hf:x: needs datasets: pip install 'entroloop\[hub\]'"):
        hub.open_hub("hf:x", None, None, True)


@pytest.mark.parametrize("source", ["digits", "wine"])
def test_datasets_reads_our_shards(datasets, tmp_path, source):
    """As docs/data.md shows it."""
    import_dataset(source, tmp_path / "set", Settings(limit=50, shard_size=20))
    ours = Dataset(tmp_path / "set")
    table = datasets.load_dataset("webdataset", data_files=str(tmp_path / "set" / "shard-*.tar"), split="train")
    assert table["cls"][:] == present(ours.labels).tolist()
    assert table["__key__"][:2] == ["000000000", "000000001"]
    column = "png" if source == "digits" else "npy"
    assert np.array_equal(
        np.array([np.asarray(sample) for sample in table[column]]).reshape(ours.all().shape), ours.all()
    )
