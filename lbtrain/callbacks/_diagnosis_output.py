"""A diagnosis on its way out: the screen, `diagnosis.json`, figures and loggers."""

from collections.abc import Callable, Mapping

from lbtrain._lightning import Trainer, rank_zero_only, rank_zero_warn
from lbtrain.callbacks._diagnosis_figures import draw_diagnosis
from lbtrain.callbacks._diagnosis_file import log_rows, write_diagnosis
from lbtrain.callbacks._diagnosis_result import Diagnosis, Names
from lbtrain.callbacks._diagnosis_table import show
from lbtrain.callbacks._evidence import Evidence
from lbtrain.callbacks._pictures import publish_figure
from lbtrain.callbacks._trainer import publish


def put_out(
    trainer: Trainer, diagnosis: Diagnosis, evidence: Evidence, keys: Mapping[str, str] | None, *, figures: bool
) -> None:
    """Publish a diagnosis everywhere; what fails becomes a warning, since it is never worth a run.

    Args:
        trainer: The Trainer, when training ends or has failed.
        diagnosis: What was found.
        evidence: What was recorded.
        keys: Config keys by knob.
        figures: Whether to draw what was recorded of a run with findings.
    """
    names = names_of(trainer, keys)
    _tried("metrics", lambda: publish(trainer, diagnosis.metrics()))
    _tried("diagnosis.json", lambda: write_diagnosis(trainer, diagnosis, names))
    _tried("the table for loggers", lambda: log_rows(trainer, diagnosis, names))
    if figures and diagnosis.findings:  # drawing takes longer than the recording of a short run
        _tried("figures", lambda: _draw(trainer, evidence, diagnosis))
    _tried("the table", lambda: show(diagnosis, names))


def names_of(trainer: Trainer, keys: Mapping[str, str] | None) -> Names:
    """Return how a run's config calls what remedies change.

    Args:
        trainer: The Trainer; LearningRateScaling has published its factor there.
        keys: Config keys by knob.

    Returns:
        The names.
    """
    factor = trainer.callback_metrics.get("lr/factor")
    return Names(keys or {}, 1.0 if factor is None else float(factor), rate_follows=factor is not None)


@rank_zero_only
def _draw(trainer: Trainer, evidence: Evidence, diagnosis: Diagnosis) -> None:
    for name, figure in draw_diagnosis(evidence, diagnosis.findings).items():
        publish_figure(trainer, name, figure)


def _tried(what: str, work: Callable[[], object]) -> None:
    try:
        work()
    except Exception as error:
        rank_zero_warn(
            f"OptimizationDiagnostics: {what} could not be put out ({type(error).__name__}: {error}); the diagnosis "
            "is in `.result` all the same"
        )
