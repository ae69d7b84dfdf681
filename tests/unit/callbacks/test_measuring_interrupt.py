"""Ctrl-C while measuring, and what a measurement shows meanwhile."""

import io
import math
import signal
import threading
from types import SimpleNamespace

import pytest
from rich.console import Console

from lbtrain import HessianSpectrum
from lbtrain._lightning import Callback
from lbtrain.callbacks import _measuring_bar
from lbtrain.callbacks._interruption import stop_wanted, stoppable
from lbtrain.callbacks._measuring_bar import MeasuringBar, Pace, share_done, words
from lbtrain.functional.progress import Progress
from tests.modules import Plain, digits_like, fit


@pytest.fixture(autouse=True)
def _handler():
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)  # Lightning ignores SIGINT from the first KeyboardInterrupt on


class Interrupted(Plain):
    """Gets SIGINT while its loss is evaluated for the n-th time in eval mode.

    The count lies in an object, which measuring does not put back as it does lists and numbers.
    """

    def __init__(self, at, times=1, **options):
        super().__init__(**options)
        self.at, self.times, self.seen = at, times, SimpleNamespace(evaluations=0)

    def training_step(self, batch, batch_idx):
        counted = not self.training
        self.seen.evaluations += counted
        if counted and self.seen.evaluations == self.at:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)
        return super().training_step(batch, batch_idx)


class Ending(Callback):
    """Keeps how the run ended."""

    def on_exception(self, trainer, pl_module, exception):
        self.exception, self.metrics = exception, dict(trainer.callback_metrics)
        self.handler = signal.getsignal(signal.SIGINT)


def interrupted(module, callback):
    """Fit until Lightning ends the process, and return how."""
    ending = Ending()
    with pytest.raises(SystemExit):
        fit(module, digits_like(), [callback, ending])
    return ending


# Without kept graphs each product evaluates the loss of all 6 batches again; the gradient before them does so too.
REBUILT = {"graph_memory_mb": 0, "figures": (), "top_k": 2, "tol": 1e-6}


def test_the_first_interrupt_keeps_what_was_measured_and_ends_the_run_as_interrupted(caplog):
    caplog.set_level("INFO")
    callback = HessianSpectrum(**REBUILT)
    ending = interrupted(Interrupted(at=6 * 6), callback)
    assert isinstance(ending.exception, KeyboardInterrupt)
    result = callback.result
    assert result.interrupted
    assert not result.spectrum.converged
    assert 2 <= result.spectrum.num_matvecs <= 6
    assert ending.metrics["hessian/interrupted"] == 1
    assert ending.metrics["hessian/lambda_max"].item() == result.spectrum.lambda_max > 0
    assert callback.tracks[-1]["hessian/interrupted"] == 1
    assert result.split is result.critical_point is None
    said = [record.getMessage() for record in caplog.records]
    assert any("stopping with what has been measured so far" in line for line in said)
    assert any(line.startswith("hessian: lambda_max") and line.endswith("; interrupted") for line in said)


def test_an_interrupt_after_the_eigenvalues_leaves_the_later_parts_out():
    whole = HessianSpectrum(**REBUILT)
    module = Interrupted(at=-1)
    fit(module, digits_like(), [whole])
    callback = HessianSpectrum(**REBUILT)
    interrupted(Interrupted(at=module.seen.evaluations - 3), callback)
    assert callback.result.interrupted
    assert callback.result.spectrum.converged
    assert callback.result.spectrum.eigenvalues == whole.result.spectrum.eigenvalues
    assert callback.result.over_batches == whole.result.over_batches
    assert callback.result.split is None


def test_an_interrupt_before_the_first_product_publishes_nothing():
    callback = HessianSpectrum(**REBUILT)
    ending = interrupted(Interrupted(at=3 + 2), callback)  # 3 look whether the loss is random
    assert isinstance(ending.exception, KeyboardInterrupt)
    assert callback.result is None
    assert not any(key.startswith("hessian/") for key in ending.metrics)


def test_the_second_interrupt_ends_at_once():
    callback = HessianSpectrum(**REBUILT)
    module = Interrupted(at=6 * 6, times=2)
    ending = interrupted(module, callback)
    assert isinstance(ending.exception, KeyboardInterrupt)
    assert callback.result is None
    assert module.seen.evaluations == 6 * 6
    assert all(m.training for m in module.modules()), "the module is put back on the way out"


def test_a_tracked_measurement_can_be_interrupted():
    callback = HessianSpectrum(**REBUILT, every_n_steps=1)
    ending = interrupted(Interrupted(at=6 * 6), callback)
    assert [point["step"] for point in callback.tracks] == [1]
    assert "hessian/lambda_max" in ending.metrics
    assert callback.result is None


def test_the_handler_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    ending = Ending()
    ending.on_train_batch_start = lambda *_: setattr(ending, "between", signal.getsignal(signal.SIGINT))
    fit(Plain(), digits_like(), [HessianSpectrum(top_k=1, every_n_steps=1, figures=()), ending])
    assert ending.between == before == signal.getsignal(signal.SIGINT)
    with stoppable("it") as wish:
        assert signal.getsignal(signal.SIGINT) != before
        signal.raise_signal(signal.SIGINT)
        assert wish.is_stop
        assert stop_wanted()
        assert signal.getsignal(signal.SIGINT) == before
    assert not stop_wanted()


def test_another_handler_installed_meanwhile_stays():
    def other(*_):
        """Do nothing."""

    with stoppable("it"):
        signal.signal(signal.SIGINT, other)
    assert signal.getsignal(signal.SIGINT) is other


def test_only_the_main_thread_handles_signals():
    seen = []

    def measure():
        with stoppable("it") as wish:
            seen.append((signal.getsignal(signal.SIGINT), wish.is_stop))

    thread = threading.Thread(target=measure)
    thread.start()
    thread.join()
    assert seen == [(signal.getsignal(signal.SIGINT), False)]


def test_an_ignored_sigint_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stoppable("it") as wish:
        signal.raise_signal(signal.SIGINT)
        assert not wish.is_stop


def state(num, residual=math.nan, tol=1e-3, stage="lanczos", limit=300):
    return Progress(stage, num, limit, residual, tol)


def test_the_time_left_is_extrapolated_from_the_decline_of_the_residual():
    pace = Pace()
    first = [pace.left(state(i, 10 ** (-i / 8)), float(i)) for i in range(1, 8)]
    assert all(map(math.isnan, first)), "too few products to tell"
    assert pace.left(state(8, 0.1), 8.0) == pytest.approx(16.0)  # a factor 10 in 8 seconds, a factor 100 to go
    assert math.isnan(pace.left(state(9, 1e-4), 9.0)), "it met its tolerance, and yet the search goes on"


def test_the_time_left_is_that_of_the_products_left_where_no_residual_falls():
    pace = Pace()
    for i in range(10, 20):
        pace.left(state(i, stage="trace", limit=30), i / 2)
    assert pace.left(state(20, stage="trace", limit=30), 10.0) == pytest.approx(5.0)
    first = [pace.left(state(i, 1.0), 12 + (i - 30) / 10) for i in range(30, 37)]  # another stage starts anew
    assert all(map(math.isnan, first))
    assert pace.left(state(40, 1.0), 13.0) == pytest.approx(26.0)


def test_the_bar_fills_on_a_log_scale_and_words_say_the_state():
    assert share_done(state(3, 1.0)) == 0.0
    assert share_done(state(3, 10**-1.5)) == pytest.approx(0.5)
    assert share_done(state(3, 1e-5)) == 1.0
    assert words(state(23, 0.0312), 4.2) == "lanczos, 23 products, residual 3.1e-02 (until 1e-03), about 4 s left"
    assert words(state(23, stage="trace"), math.nan) == "trace, 23 products"


class FakeBar:
    is_enabled = True


class FakeTrainer:
    is_global_zero = True

    def __init__(self, bar=None):
        self.progress_bar_callback = bar


def shown(trainer, monkeypatch, **options):
    monkeypatch.setenv("TERM", "xterm")
    screen = io.StringIO()
    with MeasuringBar(trainer, "HessianSpectrum", Console(file=screen, width=120, **options)) as bar:
        bar(state(3, 0.5))
        bar._bar.refresh()
    return screen.getvalue()


def test_a_terminal_shows_a_bar_that_goes(monkeypatch):
    text = shown(FakeTrainer(FakeBar()), monkeypatch, force_terminal=True)
    assert "HessianSpectrum: lanczos, 3 products, residual 5.0e-01" in text
    assert text.rstrip().endswith("\x1b[2K")  # the last line is erased


@pytest.mark.parametrize("case", ["no terminal", "dumb", "bar is off", "other rank"])
def test_elsewhere_there_is_no_bar(monkeypatch, case):
    trainer = FakeTrainer(None if case == "bar is off" else FakeBar())
    trainer.is_global_zero = case != "other rank"
    monkeypatch.setenv("TERM", "dumb") if case == "dumb" else None
    options = {"force_terminal": case != "no terminal"}
    if case == "dumb":
        options["_environ"] = {"TERM": "dumb"}
    assert shown(trainer, monkeypatch, **options).strip() == ""


def test_a_long_measurement_without_a_bar_says_one_line(monkeypatch, caplog):
    caplog.set_level("INFO")
    bar = MeasuringBar(FakeTrainer(), "HessianSpectrum", Console(file=io.StringIO()))
    bar(state(3, 0.5))
    assert not caplog.records
    monkeypatch.setattr(_measuring_bar, "_LONG", -1.0)
    for num in (4, 5):
        bar(state(num, 0.4))
    assert len(caplog.records) == 1
    assert "HessianSpectrum: lanczos, 4 products" in caplog.records[0].getMessage()


@pytest.mark.parametrize(("residual", "told"), [(math.nan, True), (0.5, False)])
def test_a_line_that_stays_tells_the_time_left_only_where_products_are_counted(monkeypatch, caplog, residual, told):
    caplog.set_level("INFO")
    bar = MeasuringBar(FakeTrainer(), "HessianSpectrum", Console(file=io.StringIO()))
    for num in range(1, 12):
        bar(state(num, residual * 0.9**num))
    monkeypatch.setattr(_measuring_bar, "_LONG", -1.0)
    bar(state(12, residual * 0.9**12))
    assert ("s left" in caplog.records[0].getMessage()) is told


def test_a_measurement_tells_its_progress(monkeypatch):
    seen = []
    monkeypatch.setattr(MeasuringBar, "__call__", lambda self, progress: seen.append(progress))
    callback = HessianSpectrum(top_k=1, trace_probes=2, by_layer=True, figures=())
    fit(Plain(), digits_like(), [callback])
    assert {progress.stage for progress in seen} >= {"lanczos", "trace"}
    assert all(0 < p.num_matvecs <= p.limit for p in seen)
    assert callback.watch is None
