"""What each measure is called on a page, and how to read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class About:
    """A measure in words: its title for axes and tables, and one sentence that says how to read it."""

    title: str
    text: str


MEASURES: dict[str, About] = {
    "frechet_distance": About(
        "Fréchet distance",
        "Distance of two Gaussians fitted to generated and held-out real features; lower is closer.",
    ),
    "generalization_score": About(
        "Generalization score",
        "Mean distance of a generated image to its nearest training image; falling means memorization.",
    ),
    "generalization_score_ratio": About(
        "Generalization score, relative to real",
        "The same, divided by the score of held-out real images against the same training set; real data have 1.",
    ),
    "training_entropy": About(
        "Training-set entropy (nats)",
        "Kozachenko-Leonenko estimate with k = 1, at the same number of images in every generation.",
    ),
    "memorized_fraction": About(
        "Memorized fraction",
        "Share of generated images three times nearer to one training image than to any other.",
    ),
    "memorized_calibrated": About(
        "Memorized, calibrated",
        "Share of generated images as near to the training set as only the nearest 1% of held-out real ones are.",
    ),
    "covariance_trace": About(
        "Covariance trace", "Total variance of the generated features; falls in variance collapse."
    ),
    "effective_rank": About(
        "Effective rank", "exp of the entropy of the covariance spectrum: how many directions carry variance."
    ),
    "kernel_distance": About(
        "Kernel distance (KID)", "Unbiased MMD² with a cubic kernel to held-out data; 0 is equal."
    ),
    "precision": About("Precision", "Share of generated points inside the real manifold, k = 3."),
    "recall": About("Recall", "Share of real points inside the generated manifold, k = 3."),
    "density": About(
        "Density", "How many real balls hold a generated point, relative to k = 5; about 1 for equal sets."
    ),
    "coverage": About("Coverage", "Share of real points with a generated one among their neighbours, k = 5."),
    "vendi_score": About("Vendi score", "Effective number of different generated images, by cosine similarity."),
    "authenticity": About(
        "Authenticity (%)", "Share of generated images further from their training image than its real neighbour is."
    ),
    "ct_score": About("C_T", "Nearer to the training set than held-out data (below 0, copying) or further (above 0)."),
    "real_share": About("Share of real images", "Real images in the training set of that generation."),
}

HEADLINE = ("frechet_distance", "generalization_score", "training_entropy")


# What the field calls a measure in one encoder's features. The paper's FID shares its name with the standard one only.
KNOWN_AS = {
    ("frechet_distance", "inception"): "FID",
    ("frechet_distance", "inception-paper"): "The paper's FID (not comparable with FID)",
    ("frechet_distance", "dinov2-large"): "FD-DINOv2",
    ("kernel_distance", "inception"): "KID",
    ("kernel_distance", "inception-paper"): "Kernel distance",
}


def title(measure: str, encoder: str = "") -> str:
    """The measure's title in the features of an encoder; for one that is not listed, its name in words."""
    if (measure, encoder) in KNOWN_AS:
        return KNOWN_AS[measure, encoder]
    return MEASURES[measure].title if measure in MEASURES else measure.replace("_", " ")
