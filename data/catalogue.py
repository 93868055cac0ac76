"""The built-in encoders and sources, with the facts about each."""

from __future__ import annotations

from dataclasses import dataclass

from entroloop.data.registry import Facts, Registry


@dataclass(frozen=True)
class EncoderFacts(Facts):
    """A function (shape, device) -> `Encoder`. See `data/features/encoder.py`.

    dim      features per row; None: as many as a sample has values
    resize   how it resizes images, in a few words
    fitted   whether it is fitted to the labelled real data; if so, it takes the sealed folder of the fit as `fitted=`
    """

    dim: int | None = None
    resize: str = "its own"
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

ENCODERS = Registry(
    "encoder",
    "encoders",
    EncoderFacts,
    {
        "pixel": EncoderFacts("entroloop.data.features.pixel:Pixel", resize="none"),
        "classifier": EncoderFacts(
            "entroloop.data.features.classifier:ClassifierFeatures",
            dim=CLASSIFIER_FEATURES,
            resize=f"images above {CLASSIFIER_SIDE} pixels averaged to {CLASSIFIER_SIDE}",
            fitted=True,
        ),
        "inception": EncoderFacts(
            "entroloop.data.features.inception:load_inception",
            dim=INCEPTION_FEATURES,
            resize="TF1 bilinear to 299 x 299",
        ),
        "inception-paper": EncoderFacts(
            "entroloop.data.features.inception:load_paper_inception",
            dim=INCEPTION_FEATURES,
            resize="Pillow bilinear to 299 x 299",
        ),
        "dinov2-small": EncoderFacts(
            "entroloop.data.features.dinov2:load_small", dim=384, resize="Pillow bicubic to 224 x 224"
        ),
        "dinov2-large": EncoderFacts(
            "entroloop.data.features.dinov2:load_large", dim=1024, resize="Pillow bicubic to 224 x 224"
        ),
        "dinov2-paper": EncoderFacts(
            "entroloop.data.features.dinov2:load_paper",
            dim=384,
            resize="Pillow bicubic, shorter side to 256, middle 224 x 224",
        ),
    },
)

_ARRAYS = "entroloop.data.sources.arrays"

SOURCES = Registry(
    "source",
    "sources",
    SourceFacts,
    {
        "digits": SourceFacts(f"{_ARRAYS}:digits", shape=(1, 8, 8)),
        "mixture": SourceFacts(f"{_ARRAYS}:mixture", shape=(2,)),
        "wine": SourceFacts(f"{_ARRAYS}:wine", shape=(13,)),
        "breast_cancer": SourceFacts(f"{_ARRAYS}:breast_cancer", shape=(30,)),
        "iris": SourceFacts(f"{_ARRAYS}:iris", shape=(4,)),
    },
)
