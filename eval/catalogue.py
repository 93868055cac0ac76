"""Every measure, with its title on a page and how to read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

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

    target: str = ""
    title: str = ""
    reading: str = ""
    higher_is_better: bool | None = None
    ideal: float | None = None
    needs_reference: bool = False
    known_as: Mapping[str, str] = field(default_factory=dict)


DRAWS = 2  # at least so many for intervals and ranges: a single draw has no spread

# The function of the same name in `eval/measures/registry.py` computes each.
_MEASURES = {
    "frechet_distance": MeasureFacts(
        title="Fréchet distance",
        reading="Distance of two Gaussians fitted to generated and held-out real features; lower is closer.",
        higher_is_better=False,
        # The paper's FID shares only its name with the standard FID.
        known_as={
            "inception": "FID",
            "inception-paper": "The paper's FID (not comparable with FID)",
            "dinov2-large": "FD-DINOv2",
        },
    ),
    "generalization_score": MeasureFacts(
        title="Generalization score",
        reading="Mean distance of a generated image to its nearest training image, in the units of the features; a "
        "falling score means memorization.",
    ),
    "generalization_score_ratio": MeasureFacts(
        title="Generalization score, relative to real",
        reading="Generalization score divided by that of held-out real images on the same training set; 1 for real "
        "data.",
        needs_reference=True,
        ideal=1,
    ),
    "training_entropy": MeasureFacts(
        title="Training-set entropy (nats)",
        reading="Kozachenko-Leonenko estimate with k = 1, at the same number of images in every generation.",
    ),
    "generated_entropy": MeasureFacts(
        title="Entropy of the samples (nats)",
        reading="The same estimate of as many generated images, none of them selected.",
    ),
    "spread_gap": MeasureFacts(
        title="Spread gap",
        reading="Mean log nearest-neighbour distance of generated images minus that of held-out real images, at equal "
        "numbers; 0 is best, above 0 generated images are more spread.",
        ideal=0,
    ),
    "memorized_fraction": MeasureFacts(
        title="Memorized fraction",
        reading="Share of generated images three times nearer to one training image than to any other.",
        higher_is_better=False,
    ),
    "memorized_calibrated": MeasureFacts(
        title="Memorized, calibrated",
        reading="Share of generated images no further from the training set than the nearest 1% of held-out real "
        "images.",
        higher_is_better=False,
        needs_reference=True,
    ),
    "covariance_trace": MeasureFacts(
        title="Covariance trace",
        reading="Total variance of the generated features, in their squared units; falls in variance collapse.",
    ),
    "effective_rank": MeasureFacts(
        title="Effective rank",
        reading="exp of the entropy of the covariance spectrum: how many directions carry variance.",
    ),
    "kernel_distance": MeasureFacts(
        title="Kernel distance (KID)",
        reading="Unbiased MMD² with a cubic kernel to held-out data; about 0 for equal distributions. Papers often "
        "give 1,000 times this number.",
        higher_is_better=False,
        known_as={"inception": "KID", "inception-paper": "Kernel distance"},
    ),
    "precision": MeasureFacts(
        title="Precision",
        reading="Share of generated points inside the real manifold, k = 3.",
        higher_is_better=True,
    ),
    "recall": MeasureFacts(
        title="Recall",
        reading="Share of real points inside the generated manifold, k = 3.",
        higher_is_better=True,
    ),
    "density": MeasureFacts(
        title="Density",
        reading="Mean number of real balls that contain a generated point, divided by k = 5; about 1 for equal sets.",
        ideal=1,
    ),
    "coverage": MeasureFacts(
        title="Coverage",
        reading="Share of real points with a generated point nearer than their k-th nearest real neighbour, k = 5.",
        higher_is_better=True,
    ),
    "vendi_score": MeasureFacts(
        title="Vendi score",
        reading="Effective number of different generated images, by cosine similarity.",
    ),
    "authenticity": MeasureFacts(
        title="Authenticity (%)",
        reading="Share of generated images further from their nearest training image than its nearest neighbour is.",
        higher_is_better=True,
    ),
    "ct_score": MeasureFacts(
        title="C_T",
        reading="A z-score: below 0, generated images are nearer to the training set than held-out data (copying); "
        "above 0, further.",
        needs_reference=True,
        ideal=0,
    ),
}

_BUILT_IN = {
    name: replace(facts, target=f"entroloop.eval.measures.registry:{name}") for name, facts in _MEASURES.items()
}
MEASURES = Registry("measure", "measures", MeasureFacts, _BUILT_IN)

# A report shows these in this order: the measures, then the facts about the training set.
SHOWN: dict[str, MeasureFacts] = {
    **MEASURES.built_in,
    "real_share": MeasureFacts(
        title="Share of real images", reading="Real images in the training set of that generation."
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
