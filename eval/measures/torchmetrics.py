"""Measures as torchmetrics Metrics, for any training or sampling loop.

    update(samples, role="generated" | "training" | "reference")  …  compute()  ->  one number (AllMeasures: a dict)

`samples` are features [n, D], or anything that `encoder` turns into features. Features stay on the rank that saw them.
`compute` compares block by block through the World, so no rank holds all features, and a rank may have seen none. Every
rank must call `compute`, and every rank gets the same result. `library_metrics` makes torchmetrics' own FID, KID and
MiFID over the same encoder.

Each built-in measure has a class (`Precision`, `VendiScore`, …), made from the facts in `catalogue.py`. `metric_of`
makes the class of a user's own measure.

n samples per call, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from torchmetrics.image.mifid import MemorizationInformedFrechetInceptionDistance

from entroloop.data.errors import UserError
from entroloop.data.features.encoder import Encoder
from entroloop.data.store.shards import REAL
from entroloop.data.world import World, current
from entroloop.eval.catalogue import MEASURES
from entroloop.eval.measures import frechet
from entroloop.eval.measures.exchanges import Exchanges
from entroloop.eval.measures.frechet import Moments, merge, moments
from entroloop.eval.measures.registry import measure
from entroloop.eval.measures.sets import Sets, check_finite, check_width, rows_of

Role = Literal["generated", "training", "reference"]
ROLES: tuple[Role, ...] = ("generated", "training", "reference")
Encode = Callable[[Any], Any]
KID_SUBSET = 1000


class _SetMetric(Metric):  # type: ignore[misc]  # torchmetrics comes without checked types
    """Base of all metrics here: roles, the encoder, and the World instead of torchmetrics' own synchronisation."""

    full_state_update = False
    is_differentiable = False

    def __init__(self, encoder: Encode | None = None, *, world: World | None = None, **options: Any) -> None:
        super().__init__(sync_on_compute=False, dist_sync_on_step=False, **options)
        self.encoder = encoder
        self._world = world
        for role in ROLES:
            self.add_state(role, default=[], dist_reduce_fx=None)

    @property
    def world(self) -> World:
        """The World that was given, else the World of the process group that this process has joined."""
        return current(self.device) if self._world is None else self._world

    def _features(self, samples: Any, role: str) -> Tensor:
        """Features [n, D]. Raises UserError unless they are finite in float32, with the role's D of earlier calls."""
        if role not in ROLES:
            raise UserError(f"role {role!r} does not exist: give one of {', '.join(ROLES)}")
        features = rows_of(role, self._encoded(samples))
        check_finite(role, features)
        for kept in getattr(self, role)[:1]:
            _check_equal(role, {kept.shape[1], features.shape[1]})
        return features.to(self.device)

    def _encoded(self, samples: Any) -> Any:
        """The encoder's features of the samples. Our encoders get arrays; other encoders get the samples unchanged."""
        if self.encoder is None:
            return samples
        if isinstance(self.encoder, Encoder) and isinstance(samples, Tensor):
            samples = samples.detach().cpu().numpy()
        return self.encoder(samples)

    def _widths(self) -> dict[str, int]:
        """D of each set that any rank has seen. Raises UserError, on every rank, when D differs."""
        own = {role: {x.shape[1] for x in getattr(self, role)} for role in ROLES}
        known = self.world.gather_objects(own)  # a rank that saw nothing of a set learns its width from others
        every = {role: set().union(*(rank[role] for rank in known)) for role in ROLES}
        for role, found in every.items():
            _check_equal(role, found)
        widths: dict[str, int] = {role: found.pop() for role, found in every.items() if found}
        for name, width in widths.items():
            check_width(name, width, widths.get("generated", width))
        return widths


def _check_equal(role: str, widths: set[int]) -> None:
    if len(widths) > 1:
        raise UserError(f"{role}: features of different widths: {', '.join(map(str, sorted(widths)))}")


class FeatureMetric(_SetMetric):
    """One measure of `entroloop.eval.measures.registry` (`name`), over all features seen since the last reset.

    entropy_size, seed  as for `Sets`
    `compute` raises UserError when a set that the measure needs has fewer than two samples.
    """

    name: str = ""

    def __init__(
        self, encoder: Encode | None = None, *, entropy_size: int | None = None, seed: int = 0, **options: Any
    ) -> None:
        super().__init__(encoder, **options)
        self.entropy_size, self.seed = entropy_size, seed

    def update(self, samples: Any, role: Role = "generated") -> None:
        """Adds samples to one of the sets."""
        features = self._features(samples, role)
        getattr(self, role).append(features.float())

    def compute(self) -> Any:
        return torch.tensor(self._measured((self.name,))[self.name], dtype=torch.float64, device=self.device)

    def _measured(self, only: tuple[str, ...] | None) -> dict[str, float]:
        widths = self._widths()
        absent = [role for role in ("generated", "training") if role not in widths]
        if absent:
            raise UserError(f"{absent[0]}: holds 0 points; measures need at least 2")
        full = {
            role: torch.cat([*getattr(self, role), torch.empty(0, width, device=self.device)])
            for role, width in widths.items()
        }
        sets = Sets(**full, world=self.world, entropy_size=self.entropy_size, seed=self.seed)
        measured = measure(sets, only=only)
        for name in only or ():
            if name not in measured.values:
                raise UserError(f"{name}: needs reference samples (update(…, role='reference')) as well")
        return measured.values


class AllMeasures(FeatureMetric):
    """Every measure at once, sharing the neighbour searches: compute() -> {name: float}."""

    def compute(self) -> dict[str, float]:
        return self._measured(None)


def class_name(measure: str) -> str:
    """`kernel_distance` -> `KernelDistance`. Parts of two letters become capitals: `ct_score` -> `CTScore`."""
    return "".join(part.upper() if len(part) == 2 else part.capitalize() for part in measure.split("_"))


def metric_of(measure: str) -> type[FeatureMetric]:
    """The metric class of a measure, built in or the user's own (`module:attribute`)."""
    facts = MEASURES.facts(measure)
    name = class_name(measure.rpartition(":")[2])
    about = {"name": measure, "higher_is_better": facts.higher_is_better, "__doc__": facts.reading}
    return type(name, (FeatureMetric,), {**about, "__module__": __name__})


class FrechetDistance(_SetMetric):
    """Frechet distance of generated samples to the reference if there is one, else to the training set. It keeps only
    float64 sums, so memory does not grow with the number of samples."""

    higher_is_better = MEASURES.built_in["frechet_distance"].higher_is_better

    def update(self, samples: Any, role: Role = "generated") -> None:
        """Adds samples to one of the sums, each of which is one packed tensor."""
        new = moments(self._features(samples, role))
        kept: list[Tensor] = getattr(self, role)
        if kept:
            new = merge(_unpack(kept[0]), new)
        setattr(self, role, [_pack(new)])

    def compute(self) -> Tensor:
        sums, exchanges = {}, Exchanges(self.world)
        for role, width in self._widths().items():
            kept: list[Tensor] = getattr(self, role)
            mine = _unpack(kept[0]) if kept else moments(torch.empty(0, width, device=self.device))
            sums[role] = exchanges.combined(mine)
        real = "reference" if "reference" in sums else "training"
        for role in ("generated", real):
            if role not in sums or sums[role].n < 2:
                raise UserError(f"{role}: holds too few points; the Frechet distance needs at least 2")
        value = frechet.frechet_distance(sums["generated"], sums[real])
        return torch.tensor(value, dtype=torch.float64, device=self.device)


# `Precision`, `Recall`, … : a class for each measure that has none above.
globals().update({class_name(m): metric_of(m) for m in MEASURES.built_in if class_name(m) not in globals()})
if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...


def _pack(of: Moments) -> Tensor:
    """float64 [D + 2, D]: scatter, mean, count."""
    return torch.cat([of.scatter, of.mean[None], torch.full_like(of.mean, of.n)[None]])


def _unpack(packed: Tensor) -> Moments:
    return Moments(int(packed[-1, 0]), packed[-2], packed[:-2])


class RealShare(Metric):  # type: ignore[misc]
    """Provenance: share of real images (generation -1) among those seen; update(generations int64 [n])."""

    full_state_update = False
    real: Tensor
    total: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in ("real", "total"):
            self.add_state(name, default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, generations: Any) -> None:
        given = torch.as_tensor(generations)
        self.real += (given == REAL).sum()
        self.total += given.numel()

    def compute(self) -> Tensor:
        return self.real.double() / self.total


class EncoderModule(nn.Module):
    """Our encoder as a feature network for torchmetrics: uint8 [n, C, H, W] -> float32 [n, D]."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_features = encoder.dim

    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(self.encoder(images.cpu().numpy()))).to(images.device)


class _Kid(KernelInceptionDistance):  # type: ignore[misc]
    """KID. Without a given subset size, its subsets are no larger than the smaller set."""

    def __init__(self, feature: nn.Module, subset_size: int | None, **options: Any) -> None:
        largest = KID_SUBSET if subset_size is None else subset_size
        super().__init__(feature=feature, subset_size=largest, **options)
        self._largest, self._may_shrink = largest, subset_size is None

    def compute(self) -> tuple[Tensor, Tensor]:
        smaller = min(sum(map(len, parts)) for parts in map(_as_list, (self.real_features, self.fake_features)))
        if smaller < 2:
            raise UserError("KID: needs at least 2 real and 2 generated images")
        if smaller < self._largest and not self._may_shrink:
            raise UserError(f"KID: subset_size {self._largest}, but the smaller set holds {smaller} images")
        self.subset_size = min(self._largest, smaller)
        mean, spread = super().compute()
        return mean, spread


def _as_list(parts: list[Tensor] | Tensor) -> list[Tensor]:
    return parts if isinstance(parts, list) else [parts]


def library_metrics(
    encoder: Encoder, shape: tuple[int, int, int], *, subsets: int = 100, subset_size: int | None = None
) -> Mapping[str, Metric]:
    """torchmetrics' own FID, KID and MiFID over our encoder: update(images, real=True | False).

    shape        (C, H, W) of the images
    subset_size  images per subset of KID; None: 1,000, or the number of images in the smaller set if that is smaller

    KID draws its subsets from torch's global generator. Its `compute` raises UserError when the given subset size is
    larger than a set, or when a set holds fewer than two images. Every rank must call `compute` of all three. FID
    computes in float64.
    """
    module = EncoderModule(encoder)
    options: dict[str, Any] = {"normalize": False}
    fid = FrechetInceptionDistance(feature=module, input_img_size=shape, antialias=False, **options)
    fid.set_dtype(torch.float64)
    return {
        "fid": fid,
        "kid": _Kid(module, subset_size, subsets=subsets, **options),
        "mifid": MemorizationInformedFrechetInceptionDistance(feature=module, **options),
    }
