"""Every measure, with its title on a page and how to read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from entroloop.data.registry import Facts, Registry, is_own


@dataclass(frozen=True)
class MeasureFacts(Facts):
    """A function (sets: Sets) -> float. See `eval/measures/registry.py`.

    title             for axes and tables; empty: the function's name in words
    reading           one sentence that says how to read it
    higher_is_better  None when neither direction is better
    ideal             the value of equal distributions, for a measure of which neither direction is better
    needs_reference   whether the measure is left out when there is no reference set beside the training set
    known_as          name of an encoder -> the literature's name for the measure in that encoder's features
    """

    title: str = ""
    reading: str = ""
    higher_is_better: bool | None = None
    ideal: float | None = None
    needs_reference: bool = False
    known_as: Mapping[str, str] = field(default_factory=dict)


DRAWS = 2  # at least so many for intervals and ranges: a single draw has no spread

_MEASURES = "entroloop.eval.measures.registry"

MEASURES = Registry(
    "measure",
    "measures",
    MeasureFacts,
    {
        "frechet_distance": MeasureFacts(
            f"{_MEASURES}:frechet_distance",
            "Fréchet distance",
            "Distance of two Gaussians fitted to generated and held-out real features; lower is closer.",
            higher_is_better=False,
            # The paper's FID shares only its name with the standard FID.
            known_as={
                "inception": "FID",
                "inception-paper": "The paper's FID (not comparable with FID)",
                "dinov2-large": "FD-DINOv2",
            },
        ),
        "generalization_score": MeasureFacts(
            f"{_MEASURES}:generalization_score",
            "Generalization score",
            "Mean distance of a generated image to its nearest training image, in the units of the features; a falling "
            "score means memorization.",
        ),
        "generalization_score_ratio": MeasureFacts(
            f"{_MEASURES}:generalization_score_ratio",
            "Generalization score, relative to real",
            "Generalization score divided by that of held-out real images on the same training set; 1 for real data.",
            needs_reference=True,
            ideal=1,
        ),
        "training_entropy": MeasureFacts(
            f"{_MEASURES}:training_entropy",
            "Training-set entropy (nats)",
            "Kozachenko-Leonenko estimate with k = 1, at the same number of images in every generation.",
        ),
        "generated_entropy": MeasureFacts(
            f"{_MEASURES}:generated_entropy",
            "Entropy of the samples (nats)",
            "The same estimate of as many generated images, none of them selected.",
        ),
        "spread_gap": MeasureFacts(
            f"{_MEASURES}:spread_gap",
            "Spread gap",
            "Mean log nearest-neighbour distance of generated images minus that of held-out real images, at equal "
            "numbers; 0 is best, above 0 generated images are more spread.",
            ideal=0,
        ),
        "memorized_fraction": MeasureFacts(
            f"{_MEASURES}:memorized_fraction",
            "Memorized fraction",
            "Share of generated images three times nearer to one training image than to any other.",
            higher_is_better=False,
        ),
        "memorized_calibrated": MeasureFacts(
            f"{_MEASURES}:memorized_calibrated",
            "Memorized, calibrated",
            "Share of generated images no further from the training set than the nearest 1% of held-out real images.",
            higher_is_better=False,
            needs_reference=True,
        ),
        "covariance_trace": MeasureFacts(
            f"{_MEASURES}:covariance_trace",
            "Covariance trace",
            "Total variance of the generated features, in their squared units; falls in variance collapse.",
        ),
        "effective_rank": MeasureFacts(
            f"{_MEASURES}:effective_rank",
            "Effective rank",
            "exp of the entropy of the covariance spectrum: how many directions carry variance.",
        ),
        "kernel_distance": MeasureFacts(
            f"{_MEASURES}:kernel_distance",
            "Kernel distance (KID)",
            "Unbiased MMD² with a cubic kernel to held-out data; about 0 for equal distributions. Papers often give "
            "1,000 times this number.",
            higher_is_better=False,
            known_as={"inception": "KID", "inception-paper": "Kernel distance"},
        ),
        "precision": MeasureFacts(
            f"{_MEASURES}:precision",
            "Precision",
            "Share of generated points inside the real manifold, k = 3.",
            higher_is_better=True,
        ),
        "recall": MeasureFacts(
            f"{_MEASURES}:recall",
            "Recall",
            "Share of real points inside the generated manifold, k = 3.",
            higher_is_better=True,
        ),
        "density": MeasureFacts(
            f"{_MEASURES}:density",
            "Density",
            "Mean number of real balls that contain a generated point, divided by k = 5; about 1 for equal sets.",
            ideal=1,
        ),
        "coverage": MeasureFacts(
            f"{_MEASURES}:coverage",
            "Coverage",
            "Share of real points with a generated point nearer than their k-th nearest real neighbour, k = 5.",
            higher_is_better=True,
        ),
        "vendi_score": MeasureFacts(
            f"{_MEASURES}:vendi_score",
            "Vendi score",
            "Effective number of different generated images, by cosine similarity.",
        ),
        "authenticity": MeasureFacts(
            f"{_MEASURES}:authenticity",
            "Authenticity (%)",
            "Share of generated images further from their nearest training image than its nearest neighbour is.",
            higher_is_better=True,
        ),
        "ct_score": MeasureFacts(
            f"{_MEASURES}:ct_score",
            "C_T",
            "A z-score: below 0, generated images are nearer to the training set than held-out data (copying); above "
            "0, further.",
            needs_reference=True,
            ideal=0,
        ),
    },
)

# A report shows these in this order: the measures, then the facts about the training set.
SHOWN: dict[str, MeasureFacts] = {
    **MEASURES.built_in,
    "real_share": MeasureFacts(
        "entroloop.eval.measures.row:Row",
        "Share of real images",
        "Real images in the training set of that generation.",
    ),
}

HEADLINE = ("frechet_distance", "generalization_score", "training_entropy")


def title(measure: str, encoder: str = "") -> str:
    """The measure's title in the features of an encoder; for a measure that is not listed, its name in words."""
    if measure not in SHOWN:
        return (measure.rpartition(":")[2] if is_own(measure) else measure).replace("_", " ")
    return SHOWN[measure].known_as.get(encoder, SHOWN[measure].title)


def space(encoder: str, vectors: bool) -> str:
    """The word for a feature space in texts: the encoder's name, but `vector` for vectors as they are."""
    return "vector" if vectors and encoder == "pixel" else encoder


RAW = ("pixel", space("pixel", True))  # the words for the samples as they are
