"""The built-in encoders, sources and file formats, with the facts about each."""

from __future__ import annotations

from dataclasses import dataclass

from entroloop.data.registry import Facts, Registry


@dataclass(frozen=True)
class EncoderFacts(Facts):
    """A function (shape, device) -> `Encoder`. See `data/features/encoder.py`.

    dim      features per row; None: as many as a sample has values
    resize   how it resizes images, in a few words
    weights  whether it needs files of pretrained weights
    fitted   whether it is fitted to the labelled real data; if so, it takes the sealed folder of the fit as `fitted=`
    """

    dim: int | None = None
    resize: str = "its own"
    weights: bool = False
    fitted: bool = False


@dataclass(frozen=True)
class SourceFacts(Facts):
    """A function () -> `Source`. See `data/sources/base.py`.

    shape  of a sample, if known without loading the source: (C, H, W) or (D,)
    """

    shape: tuple[int, ...] | None = None


CLASSIFIER_FEATURES = 64
CLASSIFIER_SIDE = 32  # px; the classifier averages larger images down to it
INCEPTION_FEATURES = 2048

_FEATURES = "entroloop.data.features"
_SOURCES = "entroloop.data.sources"


def _pretrained(target: str, dim: int, resize: str) -> EncoderFacts:
    return EncoderFacts(f"{_FEATURES}.{target}", dim, resize, weights=True)


ENCODERS = Registry(
    "encoder",
    "encoders",
    EncoderFacts,
    {
        "pixel": EncoderFacts(f"{_FEATURES}.pixel:Pixel", resize="none"),
        "classifier": EncoderFacts(
            f"{_FEATURES}.classifier:ClassifierFeatures",
            CLASSIFIER_FEATURES,
            f"images above {CLASSIFIER_SIDE} pixels averaged to {CLASSIFIER_SIDE}",
            fitted=True,
        ),
        "inception": _pretrained("inception:load_inception", INCEPTION_FEATURES, "TF1 bilinear to 299 x 299"),
        "inception-paper": _pretrained(
            "inception:load_paper_inception", INCEPTION_FEATURES, "Pillow bilinear to 299 x 299"
        ),
        "dinov2-small": _pretrained("dinov2:load_small", 384, "Pillow bicubic to 224 x 224"),
        "dinov2-large": _pretrained("dinov2:load_large", 1024, "Pillow bicubic to 224 x 224"),
        "dinov2-paper": _pretrained("dinov2:load_paper", 384, "Pillow bicubic, shorter side to 256, middle 224 x 224"),
    },
)

SOURCES = Registry(
    "source",
    "sources",
    SourceFacts,
    {
        "digits": SourceFacts(f"{_SOURCES}.arrays:digits", shape=(1, 8, 8)),
        "mixture": SourceFacts(f"{_SOURCES}.arrays:mixture", shape=(2,)),
        "wine": SourceFacts(f"{_SOURCES}.arrays:wine", shape=(13,)),
        "breast_cancer": SourceFacts(f"{_SOURCES}.arrays:breast_cancer", shape=(30,)),
        "iris": SourceFacts(f"{_SOURCES}.arrays:iris", shape=(4,)),
    },
)

# A format is a function (given: Given) -> Source or None, see `data/sources/given.py`. The first format that returns a
# source reads the file or folder. A sealed folder and a folder of features must not be listed, so they come first.
FORMATS = Registry(
    "format",
    "formats",
    Facts,
    {
        "rows": Facts(f"{_SOURCES}.arrays:stored_rows"),
        "sealed": Facts(f"{_SOURCES}.sealed:recognise"),
        "cifar": Facts(f"{_SOURCES}.cifar:recognise"),
        "idx": Facts(f"{_SOURCES}.idx:recognise"),
        "images": Facts(f"{_SOURCES}.containers:images"),
        "tar": Facts(f"{_SOURCES}.containers:tars"),
        "parquet": Facts(f"{_SOURCES}.parquet:recognise"),
        "lone array": Facts(f"{_SOURCES}.arrays:lone_array"),
    },
)
