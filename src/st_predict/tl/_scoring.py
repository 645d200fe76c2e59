"""Scores of the predictions of one section, against measured counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from st_predict import metrics
from st_predict.pp import THETA, pearson_residuals

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from scipy.sparse import csr_array

    from st_predict._sections import HeldOutSection
    from st_predict.specs import ModelCard

__all__ = ["SectionScores", "Truth", "compare", "gene_intervals", "over_sections", "score_section"]

N_BOOTSTRAP = 200
SPOTS_PER_BLOCK = 12
_OVERALL = ("gene_partial", "gene_residual", "gene_pearson", "gene_spearman", "share_above")
MIN_SPOTS = 8
"""Minimum number of spots for neighbour graphs and blocks."""


@dataclass(frozen=True, slots=True, eq=False)
class _Residuals:
    """Pearson residuals of counts, by given proportions of the genes."""

    proportions: NDArray[np.float64]
    theta: float

    def __call__(self, counts: NDArray[np.float64], totals: NDArray[np.float64]) -> NDArray[np.float64]:
        return pearson_residuals(counts, totals, self.proportions, theta=self.theta, clip=np.sqrt(len(counts)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Truth:
    """Measured values of the spots of a section.

    Parameters
    ----------
    name
        Name of the section.
    genes
        Panel.
    target
        ``(n_spots, n_genes)``: measured values in the units of the prediction.
    residuals
        ``(n_spots, n_genes)``: Pearson residuals of the counts, by the gene proportions of the section.
    relative
        ``(n_spots, n_genes)``: Pearson residuals by the gene proportions of the training spots, if the card has them.
        For other patients, whose proportions differ, these residuals depend on depth; they are only scored with depth
        regressed out.
    covariates
        ``(n_spots, 2)``: log total count and its square.
    weights
        Graph of the nearest spots; ``None`` for too few spots.
    blocks
        ``(n_spots,)``: number of the spot's block, for intervals; ``None`` for too few spots.
    grid
        ``(n_spots, 2)``: row and column on the lattice, if there is one.
    constants
        Per-gene scores that do not depend on the predictor.
    """

    name: str
    genes: tuple[str, ...]
    target: NDArray[np.float32]
    residuals: NDArray[np.float64]
    relative: NDArray[np.float64]
    covariates: NDArray[np.float64]
    weights: csr_array | None
    blocks: NDArray[np.int64] | None
    grid: NDArray[np.int64] | None
    constants: Mapping[str, NDArray[np.float64]]

    @classmethod
    def of(cls, section: HeldOutSection, card: ModelCard) -> Self:
        """Measure a section."""
        observed = section.observed
        counts, totals = np.asarray(observed.counts, np.float64), observed.totals
        own = _Residuals(counts.sum(axis=0) / totals.sum(), THETA)
        reference = card.target.reference
        relative = own if reference is None else _Residuals(np.asarray(reference.proportions), card.target.theta)
        covariates = metrics.depth_covariates(totals)
        residuals = own(counts, totals)
        xy, grid = observed.section.spots.xy[observed.rows], observed.section.spots.grid
        enough = len(counts) >= MIN_SPOTS
        weights = metrics.neighbour_weights(xy, k=6) if enough else None
        n_blocks = max(2, len(counts) // SPOTS_PER_BLOCK)
        undefined = np.full(len(card.genes), np.nan)
        ceilings = (
            metrics.noise_ceilings(counts, totals, [(relative, covariates), (own, None)], seed=0)
            if enough
            else [undefined, undefined]
        )
        moran = undefined if weights is None else metrics.morans_i(residuals, weights)
        return cls(
            name=section.name,
            genes=card.genes,
            target=section.target,
            residuals=residuals,
            relative=relative(counts, totals),
            covariates=covariates,
            weights=weights,
            blocks=metrics.spatial_blocks(xy, n_blocks) if enough else None,
            grid=None if grid is None else grid[observed.rows],
            constants={"observed_morans_i": moran, "ceiling_partial": ceilings[0], "ceiling_residual": ceilings[1]},
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SectionScores:
    """Scores of the predictions of one section.

    Parameters
    ----------
    genes
        One row per predictor and gene.
    summary, paper
        Rows of the evaluation's frames of these names.
    samples
        Resamples of the mean partial correlation of each predictor, ``(n_resamples,)``.
    drawn
        Resamples of the partial correlation of each gene, of one prediction, ``(n_resamples, n_genes)``.
    """

    genes: pd.DataFrame
    summary: list[dict[str, Any]]
    paper: list[dict[str, Any]]
    samples: dict[str, NDArray[np.float64]]
    drawn: NDArray[np.float32]


def score_section(truth: Truth, predictions: Mapping[str, NDArray[Any]], *, key: str, held_out: str) -> SectionScores:
    """Score several predictions of a section.

    Parameters
    ----------
    truth
        Measured values.
    predictions
        ``(n_spots, n_genes)`` of each predictor.
    key
        Predictor whose resamples are kept per gene.
    held_out
        Relation of the section to the training.
    """
    genes, rows, papers, samples, kept = [], [], [], {}, np.empty((0, 0))
    for name, predicted in predictions.items():
        about = {"section": truth.name, "predictor": name}
        scores, drawn = _score_genes(np.asarray(predicted, np.float64), truth)
        samples[name] = _mean_defined(drawn, axis=1)
        kept = drawn if name == key else kept
        genes.append(pd.DataFrame({**about, "gene": truth.genes, **scores, **truth.constants, "held_out": held_out}))
        rows.append({**about, **_means(scores, samples[name], truth)})
        papers.append({**about, **_paper(np.asarray(predicted, np.float64), truth)})
    rows.append(_ceiling_row(truth))
    table = pd.concat(genes, ignore_index=True)
    return SectionScores(genes=table, summary=rows, paper=papers, samples=samples, drawn=kept.astype(np.float32))


def _score_genes(
    predicted: NDArray[np.float64], truth: Truth
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
    """Return scores per gene, and resamples of the partial correlation, ``(n_resamples, n_genes)``."""
    undefined = np.full(len(truth.genes), np.nan)
    partial = metrics.partial_pearson(predicted, truth.relative, truth.covariates)
    drawn = np.full((N_BOOTSTRAP, len(truth.genes)), np.nan)
    if truth.blocks is not None and not np.isnan(partial).all():
        drawn = metrics.bootstrap_pearson(
            predicted, truth.relative, truth.blocks, seed=0, covariates=truth.covariates, n=N_BOOTSTRAP
        )
    low, high = gene_intervals(drawn, np.isfinite(partial))
    return {
        "partial": partial,
        "partial_low": low,
        "partial_high": high,
        "residual": metrics.pearson(predicted, truth.residuals, axis=0),
        "pearson": metrics.pearson(predicted, truth.target, axis=0),
        "spearman": metrics.spearman(predicted, truth.target, axis=0),
        "morans_i": undefined if truth.weights is None else metrics.morans_i(predicted, truth.weights),
        "ssim": undefined if truth.grid is None else metrics.ssim(predicted, truth.residuals, truth.grid, scale="own"),
    }, drawn


def gene_intervals(
    drawn: NDArray[np.floating], defined: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ends of the 95 % interval of each gene, ``(n_genes,)``; NaN where undefined.

    Parameters
    ----------
    drawn
        ``(n_resamples, n_genes)``; NaN is left out.
    defined
        ``(n_genes,)``: genes with a score.
    """
    ends = np.full((2, drawn.shape[1]), np.nan)
    everywhere = defined & np.isfinite(drawn).all(axis=0)
    if everywhere.any():
        ends[:, everywhere] = np.quantile(drawn[:, everywhere], [0.025, 0.975], axis=0)
    for gene in np.flatnonzero(defined & ~everywhere):
        ends[:, gene] = metrics.percentile_interval(drawn[:, gene])
    return ends[0], ends[1]


def _means(scores: Mapping[str, NDArray[np.float64]], samples: NDArray[np.float64], truth: Truth) -> dict[str, Any]:
    low, high = metrics.percentile_interval(samples)
    return {
        "n_spots": len(truth.target),
        "n_genes": len(truth.genes),
        "gene_partial": float(_mean_defined(scores["partial"])),
        "gene_partial_low": low,
        "gene_partial_high": high,
        "gene_residual": float(_mean_defined(scores["residual"])),
        "gene_pearson": float(_mean_defined(scores["pearson"])),
        "gene_spearman": float(_mean_defined(scores["spearman"])),
        "share_above": metrics.share_above(scores["partial"]),
        "morans_i": float(_mean_defined(scores["morans_i"])),
        "observed_morans_i": float(_mean_defined(truth.constants["observed_morans_i"])),
        "ssim": float(_mean_defined(scores["ssim"])),
        "n_undefined_genes": int(np.isnan(scores["pearson"]).sum()),
    }


def _ceiling_row(truth: Truth) -> dict[str, Any]:
    means = {name: float(_mean_defined(values)) for name, values in truth.constants.items()}
    return {
        "section": truth.name,
        "predictor": "ceiling",
        "n_spots": len(truth.target),
        "n_genes": len(truth.genes),
        "gene_partial": means["ceiling_partial"],
        "gene_residual": means["ceiling_residual"],
        "share_above": metrics.share_above(truth.constants["ceiling_partial"]),
        "observed_morans_i": means["observed_morans_i"],
    }


def _paper(predicted: NDArray[np.float64], truth: Truth) -> dict[str, Any]:
    spots = metrics.pearson(predicted, truth.target, axis=1)
    return {
        "n_spots": len(truth.target),
        "gene_pearson": float(_mean_defined(metrics.pearson(predicted, truth.target, axis=0))),
        "spot_pearson": float(_mean_defined(spots)),
        "n_undefined_spots": int(np.isnan(spots).sum()),
        "spot_rmse": float(metrics.rmse(predicted, truth.target, axis=1).mean()),
        "mae": float(metrics.mae(predicted, truth.target, axis=1).mean()),
    }


def compare(
    key: str, genes: pd.DataFrame, samples: Mapping[str, NDArray[np.float64]], section: str
) -> list[dict[str, Any]]:
    """Compare a prediction's partial correlations per gene with each predictor's."""
    partial = genes.pivot(index="gene", columns="predictor", values="partial")
    others: Sequence[str] = [name for name in samples if name != key and partial[name].notna().any()]
    rows = []
    for name in others:
        low, high = metrics.percentile_interval(samples[key] - samples[name])
        test = metrics.paired_test(partial[key].to_numpy(), partial[name].to_numpy())
        rows.append(
            {
                "section": section,
                "predictor": name,
                "difference": test.difference,
                "low": low,
                "high": high,
                "p": test.p_value,
            }
        )
    if not rows:
        return []
    corrected = metrics.benjamini_hochberg(np.array([row["p"] for row in rows], dtype=np.float64))
    return [{**row, "q": q} for row, q in zip(rows, corrected.tolist(), strict=True)]


def over_sections(
    key: str, summary: pd.DataFrame, samples: Sequence[Mapping[str, NDArray[np.float64]]]
) -> pd.DataFrame:
    """Average the scores of each predictor over sections; intervals resample sections and blocks.

    Parameters
    ----------
    key
        Key of the prediction to compare with.
    summary
        One row per section and predictor.
    samples
        Resamples of the mean partial correlation of each predictor, ``(n_resamples,)``, one mapping per section.
    """
    undefined = np.full(N_BOOTSTRAP, np.nan)

    def interval(values: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
        return metrics.percentile_interval(metrics.bootstrap_sections(np.stack(values, axis=1), seed=0))

    def drawn(name: str) -> list[NDArray[np.float64]]:
        return [section.get(name, undefined) for section in samples]

    rows = []
    for name, table in summary.groupby("predictor", sort=False):
        row = {"predictor": name, "n_sections": len(table), **table[list(_OVERALL)].mean()}
        row["gene_partial_low"], row["gene_partial_high"] = interval(drawn(str(name)))
        differences = [mine - other for mine, other in zip(drawn(key), drawn(str(name)), strict=True)]
        low, high = (np.nan, np.nan) if name == key else interval(differences)
        rows.append({**row, "difference_low": low, "difference_high": high})
    return pd.DataFrame(rows)


def _mean_defined(scores: NDArray[np.float64], axis: int | None = None) -> Any:
    """Mean of defined scores; NaN, not zero, if none is defined."""
    n = (~np.isnan(scores)).sum(axis=axis)
    return np.divide(np.nansum(scores, axis=axis), n, out=np.full(np.shape(n), np.nan), where=n > 0)
