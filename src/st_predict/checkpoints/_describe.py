"""Model card of a checkpoint as readable text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from st_predict.models import get_spec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from st_predict.specs import ModelCard, Reliability

__all__ = ["GeneScore", "card_facts", "card_gaps", "rank_genes", "score_sentence"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneScore:
    """Score of a gene on held-out sections; ``None`` where undefined.

    Parameters
    ----------
    gene
        Name of the gene.
    partial
        Partial correlation given sequencing depth.
    low, high
        Ends of its 95 % interval.
    ceiling
        Its noise ceiling.

    Examples
    --------
    >>> import st_predict as stp
    >>> stp.checkpoints.GeneScore(gene="ERBB2", partial=0.4, low=0.3, high=0.5, ceiling=0.9).partial
    0.4
    """

    gene: str
    partial: float | None
    low: float | None
    high: float | None
    ceiling: float | None

    def to_row(self) -> dict[str, str]:
        """Return the gene and its scores as text by heading; undefined scores are dashes."""
        known = self.low is not None and self.high is not None
        return {
            "gene": self.gene,
            "partial correlation": _two_digits(self.partial),
            "95 % interval": f"{_two_digits(self.low)} to {_two_digits(self.high)}" if known else "-",
            "noise ceiling": _two_digits(self.ceiling),
        }


def card_facts(card: ModelCard) -> dict[str, str]:
    """Return the contents of a card as text by heading.

    Parameters
    ----------
    card
        Card of a checkpoint.

    Returns
    -------
    dict of str to str
        Texts by heading: ``predicts``, ``units``, ``model``, ``reads``, ``trained on``, ``colours``, ``stain``, ``epoch
        chosen by``, ``data``, ``limits``, ``licence``, ``citation`` and ``made with``. Headings without contents are
        left out.

    Examples
    --------
    >>> import st_predict as stp
    >>> card = stp.specs.ModelCard.of_file(stp.checkpoints.find_weights("m2ost"))
    >>> facts = stp.checkpoints.card_facts(card)
    >>> facts["predicts"]
    '250 genes (symbols, organism: Homo sapiens)'
    >>> facts["reads"]
    'crops of 66 um, 132 um, 264 um; 0.688 um/px'
    """
    training = card.training
    ids = {"symbol": "symbols", "ensembl": "Ensembl identifiers"}[card.gene_id_type]
    facts = {
        "predicts": f"{len(card.genes)} genes ({ids}, organism: {card.organism})",
        "units": card.target.units,
        "model": card.model,
        "reads": _reads(card),
        "trained on": _sections(training.get("sections", [])),
        "colours": _colours(training.get("colours")),
        "stain": _stain(training.get("stain")),
        "epoch chosen by": _sections(training.get("validation", [])),
        "data": str(training.get("data", "")),
        "limits": str(training.get("limits", "")),
        "licence": "" if card.license == "unknown" else card.license,
        "citation": card.citation,
        "made with": f"st_predict {training['st_predict']}" if "st_predict" in training else "",
    }
    return {name: text for name, text in facts.items() if text}


def card_gaps(card: ModelCard) -> list[str]:
    """Return the facts that a card lacks, as sentences.

    Parameters
    ----------
    card
        Card of a checkpoint.

    Returns
    -------
    list of str
        One sentence per missing fact; empty for a complete card.

    Examples
    --------
    >>> import st_predict as stp
    >>> spec = stp.models.get_spec("stnet")
    >>> card = stp.specs.ModelCard(model="stnet", genes=("ERBB2", "GNAS"), crop=spec.crop)
    >>> stp.checkpoints.card_gaps(card)[0]
    'Which genes to trust: no scores on held-out sections are in the card.'
    """
    training, measured = card.training, {one.held_out: one for one in card.reliability}
    gaps = {
        "Which genes to trust: no scores on held-out sections are in the card.": not measured,
        "How well a new patient is predicted: scores are only for other sections of training patients.": set(measured)
        == {"section"},
        "How well another section of a training patient is predicted.": set(measured) == {"patient"},
        "Scores without optimism: a section that was scored chose the epoch.": any(
            one.chose_epoch for one in card.reliability
        ),
        "Which sections and patients the network was trained on.": not _sections(training.get("sections")),
        "Micrometres per pixel of the training images.": bool(_sections(training.get("sections")))
        and not all(one.get("mpp") for one in training["sections"]),
        "Colours of the training images.": "colours" not in training,
        "Organism.": card.organism == "unknown",
        "Licence.": card.license == "unknown",
        "Citation.": not card.citation,
    }
    return [sentence for sentence, missing in gaps.items() if missing]


def score_sentence(reliability: Reliability) -> str:
    """Return a summary of gene scores: held-out sections, mean score, number of trusted genes.

    Parameters
    ----------
    reliability
        Scores of one kind of held-out section.

    Returns
    -------
    str
        Two or three sentences.

    Examples
    --------
    >>> import st_predict as stp
    >>> card = stp.specs.ModelCard.of_file(stp.checkpoints.find_weights("m2ost"))
    >>> sentence = stp.checkpoints.score_sentence(card.reliability_on("patient"))
    >>> sentence.split(". ")[0]
    'Another patient: section B4 of patient B, 231 spots'
    """
    scores = [score for score in reliability.partial if score is not None]
    mean = f"mean {sum(scores) / len(scores):z.2f}" if scores else "all undefined"
    return (
        f"{reliability.where[0].upper()}{reliability.where[1:]}: {_many('section', reliability.sections)} of "
        f"{_many('patient', reliability.patients)}, {reliability.n_spots} spots. Partial correlation of {len(scores)} genes: {mean}. "
        f"The 95 % interval is above 0 for {len(reliability.trusted())} genes, about {reliability.n_by_chance} of them by chance."
    )


def rank_genes(card: ModelCard, reliability: Reliability) -> list[GeneScore]:
    """Return the scores of the genes, best first and undefined last.

    Parameters
    ----------
    card
        Card of a checkpoint.
    reliability
        Scores of one kind of held-out section, of this card.

    Returns
    -------
    list of GeneScore
        Scores of all genes of the card.

    Examples
    --------
    >>> import st_predict as stp
    >>> card = stp.specs.ModelCard.of_file(stp.checkpoints.find_weights("m2ost"))
    >>> ranked = stp.checkpoints.rank_genes(card, card.reliability_on("patient"))
    >>> [score.gene for score in ranked[:3]]
    ['MGP', 'EPCAM', 'B2M']
    """
    columns = (card.genes, reliability.partial, reliability.low, reliability.high, reliability.ceiling)
    scores = [
        GeneScore(gene=gene, partial=partial, low=low, high=high, ceiling=ceiling)
        for gene, partial, low, high, ceiling in zip(*columns, strict=True)
    ]
    return sorted(scores, key=lambda one: (one.partial is None, -(one.partial or 0.0)))


def _reads(card: ModelCard) -> str:
    """Input of the network, and its field of view."""
    reads = get_spec(card.model).reads(card.hparams)
    if reads.kind == "nothing":
        return "nothing of the image"
    levels, mpp = card.crop.levels, card.crop.mpp
    wide = [f"{level.fov:g} px" if mpp is None else f"{level.fov * mpp:.0f} um" for level in levels]
    pixels = "pixels of the image, whatever their size" if mpp is None else f"{mpp:g} um/px"
    encoder = card.hparams.get("encoder")
    what = f"{reads.kind} of {encoder!r}, from crops" if encoder and reads.kind != "crops" else "crops"
    around = f", and features of {encoder!r} on {reads.tiles} x {reads.tiles} tiles" if reads.tiles else ""
    return f"{what} of {', '.join(wide)}{around}; {pixels}"


def _sections(sections: Any) -> str:
    if not sections or not isinstance(sections, list | tuple) or not all(isinstance(one, Mapping) for one in sections):
        return ""  # notes of a foreign card may be anything
    names = [str(one.get("section", "?")) for one in sections]
    patients = sorted({str(patient) for one in sections for patient in _listed(one.get("patients"))})
    spots = sum(one.get("n_spots") or 0 for one in sections)
    mpps = sorted(one["mpp"] for one in sections if one.get("mpp"))
    size = (
        ""
        if not mpps
        else f", {mpps[0]:.3g} to {mpps[-1]:.3g} um/px"
        if mpps[0] != mpps[-1]
        else f", {mpps[0]:.3g} um/px"
    )
    return f"{_many('section', names)} of {_many('patient', patients)}, {spots} spots{size}"


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _many(what: str, names: Iterable[str]) -> str:
    names = list(names)
    return f"{what}{'' if len(names) == 1 else 's'} {', '.join(names) or 'unknown'}"


def _colours(colours: Any) -> str:
    if not isinstance(colours, Mapping) or not {"mean", "sd"} <= colours.keys():
        return ""
    pairs = zip(("red", "green", "blue"), colours["mean"], colours["sd"], strict=True)
    return ", ".join(f"{name} {mean:.2f} +- {sd:.2f}" for name, mean, sd in pairs) + " (mean and sd of pixels, 0 to 1)"


def _two_digits(value: float | None) -> str:
    return "-" if value is None else f"{value:z.2f}"


def _stain(stain: Any) -> str:
    if not isinstance(stain, Mapping) or "method" not in stain:
        return ""
    return f"slides are normalised to the training's, by {stain['method']}"
