"""The report's section about errors in the norms of the data, apart from the published six."""

from collections.abc import Iterable, Sequence

from experiments.error_study.error_names import DATA_ERRORS, ERRORS, error_name, error_names
from experiments.error_study.page import Section
from experiments.error_study.plots import plot_bars
from experiments.error_study.records import SUBSETS, Study
from experiments.error_study.tables import Row, TauTables
from experiments.error_study.verdicts import LEAST_CHOICES
from experiments.report.correlate import TauEstimate, difference
from experiments.report.html import Picture
from experiments.report.text import DASH, Cell, TextTable, number, tau_table, tau_text

MEANING = (
    "The same approximations in the norms that the data gives, over the training images of the "
    "feature errors. With E the change of a kernel, Covariance is the root of tr(E\u1d40 S E), S "
    "the second moment of what goes into the layer; Kronecker is the root of tr(G E\u1d40 S E), G "
    "the second moment of the training loss's gradient at what comes out. Relative: divided by the "
    "same norm of the kernel. The published study has neither, and the findings do not use them. "
    "Below, the best of these stands against the best of the six, each picked by the same figures."
)


def data_section(
    study: Study, tables: TauTables, by_error: Sequence[Row], bars: str
) -> tuple[Section, list[tuple[Picture, bytes]]]:
    """The section, and its pictures; it says so where the measurements lack what it needs.

    Args:
        study: what was measured.
        tables: its taus.
        by_error: the rows of the table by error.
        bars: what the bars of a plot mean.
    """
    measured = len(study.measurements.compressed)
    lacking = study.measurements.lacking_data_errors
    pictures: list[tuple[Picture, bytes]] = []
    texts: list[TextTable] = []
    if not measured:
        answers = ["No choice is measured yet."]
    elif lacking:
        answers = [
            f"Not measured: {lacking} of {measured} measurements in this work directory lack "
            f"{', '.join(map(error_name, DATA_ERRORS))}, as those of earlier versions do. "
            "A study in a new work directory has them."
        ]
    else:
        answers = [_answer(tables, phase) for phase in study.config.phases]
        texts = [
            tau_table(
                "Tau by error in the norms of the data, compression of 50 % and more",
                "error",
                list(error_names(DATA_ERRORS).items()),
                by_error,
            ),
            _gaps(tables, study.config.phases),
        ]
        picture = Picture(
            "tau_data_errors.png",
            "Tau of the six approximation errors, and of those in the norms of the data.",
            f"All choices that remove at least half of a layer, test set. {bars}",
        )
        pictures = [(picture, plot_bars(by_error, "error", error_names(ERRORS + DATA_ERRORS)))]
    section = Section(
        "data-errors",
        "Errors in the norm of the data",
        [MEANING, *answers],
        [picture for picture, _ in pictures],
        texts,
    )
    return section, pictures


def _answer(tables: TauTables, phase: str) -> str:
    """Whether the best of these errors predicts better than the best of the six."""
    when = f"{phase.title()} fine-tuning"
    ours, six = (_best(tables, "test", phase, errors) for errors in (DATA_ERRORS, ERRORS))
    if ours is None or six is None or ours[1].choices < LEAST_CHOICES:
        return f"{when}: too few choices are measured in every run."
    gap = difference(ours[1], six[1])
    if gap.lower > 0:
        verdict = "It predicts better"
    elif gap.upper < 0:
        verdict = "It predicts worse"
    else:
        verdict = "The two are not distinguishable"
    return (
        f"{when}, on the test set: {error_name(ours[0])} has the highest tau of these, "
        f"{number(ours[1].mean)}; of the six, {error_name(six[0])} has, {number(six[1].mean)}. "
        f"{verdict}: difference {tau_text(gap.mean, gap.std, gap.lower, gap.upper)}."
    )


def _gaps(tables: TauTables, phases: Sequence[str]) -> TextTable:
    columns = [(subset, phase) for subset in SUBSETS for phase in phases]
    best = {column: _best(tables, *column, ERRORS) for column in columns}

    def gap(column: tuple[str, str], error: str) -> Cell:
        ours, six = tables.by_error.get((*column, error)), best[column]
        if ours is None or six is None:
            return DASH
        found = difference(ours, six[1])
        return tau_text(found.mean, found.std, found.lower, found.upper)

    names = [error_name(six[0]) if (six := best[column]) else DASH for column in columns]
    return TextTable(
        "The same less tau of the best of the six",
        ("error", *(f"{subset}, {phase}" for subset, phase in columns)),
        (
            ("best of the six", *names),
            *(
                (error_name(error), *(gap(column, error) for column in columns))
                for error in DATA_ERRORS
            ),
        ),
    )


def _best(
    tables: TauTables, subset: str, phase: str, errors: Iterable[str]
) -> tuple[str, TauEstimate] | None:
    known = [
        (error, tau)
        for error in errors
        if (tau := tables.by_error.get((subset, phase, error))) is not None
    ]
    return max(known, key=lambda found: found[1].mean, default=None)
