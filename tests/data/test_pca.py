"""Principal components at import: scikit-learn's axes, fitted to rows that are not imported, sealed with the set."""

import numpy as np
import pytest
import safetensors.numpy
from present import present
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from entroloop.data.errors import UserError
from entroloop.data.seeds import Part
from entroloop.data.sources.importer import import_dataset, import_part, seal_import
from entroloop.data.sources.pca import AXES
from entroloop.data.sources.settings import Settings
from entroloop.data.store import manifest
from entroloop.data.store.dataset import Dataset


def vectors(folder, n=90, d=12):
    rows = np.random.default_rng(0).normal(size=(n, d)) @ np.diag(np.arange(1, d + 1)) + 1e4
    np.savez(folder / "x.npz", x=rows.astype(np.float32), y=np.arange(n) % 3)
    return rows.astype(np.float32)


def expected(rows, fitted, components):
    """The components of all rows by scikit-learn, with the largest entry of each axis positive."""
    pca = PCA(components, svd_solver="full").fit(rows[fitted].astype(np.float64))
    axes = pca.components_
    signs = np.sign(axes[np.arange(components), np.abs(axes).argmax(1)])
    return (rows.astype(np.float64) - pca.mean_) @ (signs[:, None] * axes).T, pca.explained_variance_


def test_vectors_become_their_components_and_the_fitted_rows_stay_out(tmp_path):
    rows = vectors(tmp_path)
    import_dataset(str(tmp_path / "x.npz"), tmp_path / "set", Settings(pca=4, pca_rows="20:60", shard_size=16))
    found = Dataset(tmp_path / "set")
    wanted, variance = expected(rows, slice(20, 60), 4)
    left = np.r_[0:20, 60:90]
    np.testing.assert_allclose(found.all(), wanted[left], rtol=1e-4, atol=1e-3)
    assert present(found.labels).tolist() == (left % 3).tolist()
    assert [int(name.rpartition("/")[2]) for name in found.provenance.source] == left.tolist()
    assert AXES in [entry.name for entry in found.manifest.files]
    axes = safetensors.numpy.load((tmp_path / "set" / AXES).read_bytes())
    np.testing.assert_allclose(axes["variance"], variance)
    assert found.manifest.about["import"]["settings"]["pca_rows"] == "20:60"
    (tmp_path / "set" / AXES).write_bytes(b"")
    with pytest.raises(UserError, match=AXES):
        manifest.check(tmp_path / "set", [AXES])


@pytest.mark.parametrize("resolution", [None, 4])
def test_images_become_components_of_their_pixels(tmp_path, resolution):
    import_dataset("digits", tmp_path / "plain", Settings(limit=300, labels=False, resolution=resolution))
    pixels = Dataset(tmp_path / "plain").all().reshape(300, -1)
    import_dataset(
        "digits", tmp_path / "set", Settings(pca=5, pca_rows="0:200", limit=100, labels=False, resolution=resolution)
    )
    found = Dataset(tmp_path / "set")
    assert found.shape == (5,)
    np.testing.assert_allclose(found.all(), expected(pixels, slice(0, 200), 5)[0][200:], rtol=1e-4, atol=1e-3)
    axes = safetensors.numpy.load((tmp_path / "set" / AXES).read_bytes())
    assert axes["shape"].tolist() == [1, resolution or 8, resolution or 8]
    assert len(load_digits().images) > 300


def test_parts_and_a_resumed_import_give_the_same_bytes(tmp_path):
    vectors(tmp_path)
    settings = Settings(pca=3, pca_rows="0:50", shard_size=8)
    for dest, parts in (("one", [Part()]), ("two", [Part(1, 2), Part(0, 2)])):
        for part in parts:
            import_part(str(tmp_path / "x.npz"), tmp_path / dest, settings, part)
        seal_import(tmp_path / dest)
    one, two = (manifest.read(tmp_path / name) for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pca": 3}, "--pca and --pca-rows go together"),
        ({"pca_rows": "0:5"}, "--pca and --pca-rows go together"),
        ({"pca": 3, "pca_rows": "5"}, "--pca-rows 5: give A:B"),
        ({"pca": 3, "pca_rows": "5:2"}, "--pca-rows 5:2: give A:B"),
        ({"pca": 0, "pca_rows": "0:50"}, "--pca 0: must be at least 1"),
        ({"pca": 3, "pca_rows": "0:91"}, "--pca-rows 0:91: the source has 90 samples"),
        ({"pca": 3, "pca_rows": "0:90"}, "--pca-rows 0:90: the source has 90 samples, and some must be left"),
        ({"pca": 13, "pca_rows": "0:50"}, "--pca 13: 50 rows of 12 numbers have at most 12 components"),
        ({"pca": 9, "pca_rows": "0:9"}, "--pca 9: 9 rows of 12 numbers have at most 8 components"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, given, message):
    vectors(tmp_path)
    with pytest.raises(UserError, match=message):
        import_dataset(str(tmp_path / "x.npz"), tmp_path / "set", Settings(**given))
    assert not (tmp_path / "set").exists()
