"""A table or a figure of the paper: which arms of which studies it shows, and what the paper claims of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reproduction.study import PAPER

METRIC, SPEED = "metric", "rows_per_second"
QUANTITIES = (METRIC, SPEED)
CHARTS = ("depths", "bars", "importance", "speed")


@dataclass(frozen=True)
class Side:
    """One side of a claim: an arm, measured at a cut; written ``arm@cut``."""

    arm: str
    cut: str

    def __str__(self) -> str:
        return f"{self.arm}@{self.cut}"


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper as a comparison of two numbers.

    Attributes:
        says: The sentence.
        better: What is claimed to be better.
        than: What it is compared with.
        quantity: What is compared: the study's metric, or rows per second of training.
        about_depth: Whether it can only be tested where depth pays.
        studies: The studies that it speaks of; empty for all of the experiment.
    """

    says: str
    better: Side
    than: Side
    quantity: str = METRIC
    about_depth: bool = True
    studies: tuple[str, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """A table or figure.

    Attributes:
        name: Its name, e.g. ``figure-2``.
        title: What it shows.
        studies: Names of the studies it is made of.
        paper_studies: Instead of them, those at the size of the paper; empty for the same.
        ours: Whether it is none of the paper's: it is read by `criteria`, and shown on the page of results.
        arms: Names of the arms it shows, empty for all; a study without one of them goes without.
        chart: How it is drawn.
        cuts: The cuts it shows; empty for all.
        claims: What the paper says of it.
    """

    name: str
    title: str
    studies: tuple[str, ...]
    arms: tuple[str, ...]
    chart: str
    cuts: tuple[str, ...] = ()
    claims: Sequence[Claim] = ()
    paper_studies: tuple[str, ...] = ()
    ours: bool = False

    @property
    def all_studies(self) -> tuple[str, ...]:
        """Names of the studies it is made of at any size."""
        return tuple(dict.fromkeys([*self.studies, *self.paper_studies]))

    def studies_at(self, size: str) -> tuple[str, ...]:
        """Return the names of the studies it is made of at a size; some may not have it."""
        return self.paper_studies if size == PAPER and self.paper_studies else self.studies

    def claims_of(self, study: str) -> list[Claim]:
        """Return the claims that speak of a study."""
        return [claim for claim in self.claims if not claim.studies or study in claim.studies]
