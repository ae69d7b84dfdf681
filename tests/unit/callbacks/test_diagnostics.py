"""The diagnosis of whole runs: what it says of healthy, sick and broken ones, and that training does not notice it."""

import json
import time
from contextlib import nullcontext

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lbtrain import SAM, LearningRateScaling, LossReductionCheck, OptimizationDiagnostics, StepTime
from lbtrain._lightning import Callback
from lbtrain.callbacks import _diagnosis_end, _diagnosis_exams, _diagnosis_run, _diagnosis_verdicts
from lbtrain.callbacks._diagnosis_checks import CHECKS
from tests.modules import Everything, digits_like, fit, same
from tests.unit.callbacks.diagnosed import Breaking, Classifier, clusters, diagnosed


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


HEALTHY = {
    "sgd": {},
    "momentum": {"optimizer": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9)},
    "adam": {"optimizer": lambda p: torch.optim.Adam(p, lr=0.01)},
}


@pytest.mark.parametrize("kind", HEALTHY)
def test_a_healthy_run_has_no_finding_and_prints_one_line(kind, capsys):
    doctor = diagnosed(Classifier(**HEALTHY[kind]))
    assert doctor.result.findings == ()
    assert doctor.result.checked == tuple(CHECKS)
    assert doctor.result.left_out == {}
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"diagnosis: no problem found in {len(CHECKS)} checks (")
    assert "% of the time)" in lines[0]


def test_a_relu_layer_that_never_fires_is_dead_first_and_the_table_says_so(capsys):
    doctor = diagnosed(Classifier(bias=-10.0))
    first = doctor.result.findings[0]
    assert first.problem == "dead units"
    assert "hidden" in first.evidence
    assert "16 of 16" in first.evidence
    assert first.since == 0
    out = capsys.readouterr().out
    assert out.index("dead units") < out.index("remedy") or "dead units" in out
    assert "remedy" in out


@pytest.mark.parametrize("others", [0, 8])
def test_units_that_are_silent_on_the_subset_alone_are_none(others):
    # Of 640 samples 8 lie so far out that each of them wakes units; a subset of 16 has next to none of these.
    loader = clusters(640)
    loader.dataset.tensors[0][:others] *= 100.0
    doctor = diagnosed(Classifier(bias=-30.0, lr=1e-6), loader, num_samples=16, max_epochs=2, checks={"inputs": False})
    dead = [finding for finding in doctor.result.findings if finding.problem == "dead units"]
    if others:
        assert not dead
    else:
        assert "16 of 16 relu units are dead on 640 samples from the start" in dead[0].evidence
        assert dead[0].numbers["samples"] == 640


def test_a_rate_far_too_high_is_unstable_and_the_remedy_is_in_the_run_s_own_keys(tmp_path, capsys):
    module = Classifier(optimizer=lambda p: torch.optim.SGD(p, lr=30.0, momentum=0.9))
    doctor = diagnosed(module, keys={"lr": "optimizer.lr"}, where=tmp_path)
    assert doctor.result.first == "instability"
    assert "optimizer.lr=" in capsys.readouterr().out
    written = json.loads((tmp_path / "diagnosis.json").read_text())
    found = written["findings"][0]
    (override,) = found["remedies"][0]["overrides"]
    assert override.startswith("optimizer.lr=")
    assert float(override.split("=")[1]) < 30


def test_a_summed_loss_is_named_with_its_factor():
    found = diagnosed(Classifier(reduction="sum", lr=0.1 / 16)).result.findings
    assert [f.problem for f in found] == ["summed loss"]
    assert found[0].numbers["batch"] == 16
    assert found[0].remedies[0].changes == {"reduction": "mean"}


def test_inputs_far_from_zero_are_named_though_the_network_learns():
    assert diagnosed(loader=clusters(shift=1000.0)).result.first == "ill-conditioned inputs"


def test_the_last_lambda_max_is_left_out_where_the_run_has_learned():
    learned, at_work = (diagnosed(Classifier(lr=lr))._run.evidence.points for lr in (0.1, 0.001))
    assert learned[-1].loss < 0.25 * learned[0].loss < at_work[-1].loss
    assert (learned[-1].lambda_max is None, at_work[-1].lambda_max is None) == (True, False)


class TestTraining:
    def test_calls_no_hook_that_would_do_nothing_and_those_of_a_subclass(self):
        class Counting(OptimizationDiagnostics):
            count = 0

            def on_after_backward(self, trainer, pl_module):
                self.count += 1

        plain, counting = OptimizationDiagnostics(figures=False), Counting(figures=False)
        fit(Classifier(), clusters(), [plain, counting], max_steps=5)
        idle = {name for name, hook in vars(OptimizationDiagnostics).items() if name.startswith("on_") and hook is None}
        assert idle == {"on_before_zero_grad", "on_before_backward", "on_after_backward"}
        assert counting.count == 5
        assert plain.result.findings == counting.result.findings

    @pytest.mark.parametrize("with_sam", [False, True])
    @pytest.mark.parametrize("accumulate", [1, 3])
    def test_is_the_same_bit_for_bit(self, with_sam, accumulate):
        def trained(doctors):
            torch.manual_seed(0)
            module = Everything()
            options = {"max_epochs": 2, "accumulate_grad_batches": accumulate}
            trainer = fit(module, digits_like(shuffle=True), [*([SAM(0.05)] if with_sam else []), *doctors], **options)
            return module, trainer, torch.get_rng_state()

        alone, plain, stream = trained([])
        watched, trainer, other = trained([OptimizationDiagnostics(every_n_steps=1, curvature_every=2, figures=False)])
        assert same(alone.state_dict(), watched.state_dict())
        assert alone.losses == watched.losses
        assert torch.equal(stream, other)
        first, second = plain.optimizers[0].state_dict(), trainer.optimizers[0].state_dict()
        for key, state in first["state"].items():
            assert same(state, second["state"][key])

    def test_is_timed_without_the_diagnosis(self):
        doctor, began = OptimizationDiagnostics(figures=False), time.perf_counter()
        trainer = fit(Classifier(), clusters(), [StepTime(), doctor], max_epochs=2)
        took, measured = time.perf_counter() - began, doctor.result.seconds
        assert float(trainer.callback_metrics["time/measure_s"]) == pytest.approx(measured, rel=1e-6)
        assert float(trainer.callback_metrics["time/fit_s"]) <= took - measured
        assert 0 < doctor.result.share <= 1


class TestARunThatEndsEarly:
    @pytest.mark.parametrize("error", [RuntimeError("token=secret"), KeyboardInterrupt()])
    def test_is_diagnosed_by_what_was_recorded(self, error, tmp_path, capsys):
        doctor = OptimizationDiagnostics(figures=False)
        module = Breaking(error, bias=-10.0)
        with pytest.raises((RuntimeError, SystemExit, KeyboardInterrupt)):
            fit(module, clusters(), [doctor], max_epochs=8, default_root_dir=tmp_path)
        assert doctor.result.first == "dead units"
        assert doctor.result.steps == 30
        written = json.loads((tmp_path / "diagnosis.json").read_text())
        assert (written["status"], written["error"]) == ("failed", type(error).__name__)
        assert "secret" not in (tmp_path / "diagnosis.json").read_text()
        out = capsys.readouterr().out
        assert "dead units" in out
        assert f"the run ended with {type(error).__name__}" in out

    def test_before_its_first_batch_has_no_diagnosis(self, tmp_path, capsys):
        class Stillborn(Classifier):
            def on_train_start(self):
                raise RuntimeError("no")

        doctor = OptimizationDiagnostics(figures=False)
        with pytest.raises(RuntimeError, match="no"):
            fit(Stillborn(), clusters(), [doctor], default_root_dir=tmp_path)
        assert doctor.result is None
        assert not (tmp_path / "diagnosis.json").exists()
        assert "diagnosis" not in capsys.readouterr().out

    def test_because_the_loss_is_no_number_is_unstable(self):
        class Stopping(Classifier):
            def on_train_batch_end(self, outputs, batch, batch_idx):
                if not torch.isfinite(outputs["loss"]):
                    raise ValueError("diverged")

        module = Stopping(optimizer=lambda p: torch.optim.SGD(p, lr=1e18))
        doctor = OptimizationDiagnostics(figures=False)
        with pytest.raises(ValueError, match="diverged"):
            fit(module, clusters(), [doctor], max_epochs=8)
        assert doctor.result.first == "instability"


class TestAFailure:
    def test_of_one_check_leaves_it_out_with_a_warning_and_keeps_the_rest(self, monkeypatch):
        def broken(case, limits):
            raise ZeroDivisionError("token=secret")

        monkeypatch.setitem(_diagnosis_verdicts.VERDICTS, "flow", broken)
        with pytest.warns(UserWarning, match="the check 'flow' failed and is left out.*ZeroDivisionError"):
            doctor = diagnosed(Classifier(bias=-10.0))
        assert doctor.result.first == "dead units"
        assert doctor.result.left_out == {"flow": "it failed with ZeroDivisionError"}
        assert "flow" not in doctor.result.checked

    def test_of_an_examination_does_not_keep_the_run_from_training(self, monkeypatch):
        def broken(scene, limits):
            raise ZeroDivisionError

        monkeypatch.setitem(_diagnosis_exams.EXAMS, "gradients", broken)
        with pytest.warns(UserWarning, match="'gradients' failed"):
            doctor = diagnosed()
        assert list(doctor.result.left_out) == ["gradients"]
        assert doctor.result.findings == ()

    @pytest.mark.parametrize("part", ["_look_ahead", "_take_in", "_sample"])
    def test_of_the_recording_ends_it_and_not_the_run(self, part, monkeypatch):
        def broken(*_, **__):
            raise ZeroDivisionError

        monkeypatch.setattr(_diagnosis_run.Recorder, part, broken)
        with pytest.warns(UserWarning, match="recording failed \\(ZeroDivisionError"):
            doctor = diagnosed()
        assert doctor.result.findings == ()

    @pytest.mark.parametrize("ends", [True, False])
    def test_of_all_judging_leaves_every_check_out_and_no_error_of_the_run_is_hidden(self, ends, monkeypatch):
        def broken(*_, **__):
            raise ZeroDivisionError("token=secret")

        monkeypatch.setattr(_diagnosis_run, "case_of", broken)
        doctor = OptimizationDiagnostics(figures=False, checks={"gradients": False})
        module = Classifier() if ends else Breaking(RuntimeError("mine"), at=5)
        with pytest.warns(UserWarning, match="judging failed \\(ZeroDivisionError"), nullcontext() if ends else (
            pytest.raises(RuntimeError, match="mine")
        ):  # fmt: skip
            fit(module, clusters(), [doctor], max_epochs=2)
        assert {*doctor.result.checked, *doctor.result.left_out} == {*CHECKS} - {"gradients"}
        assert doctor.result.left_out["instability"] == "judging failed with ZeroDivisionError"

    def test_of_one_record_of_the_data_does_not_keep_the_run_from_training(self, tmp_path):
        class Broken(TensorDataset):
            def __getitem__(self, i):
                if i == 5:
                    raise KeyError("token=secret")
                return super().__getitem__(i)

        data = Broken(*clusters().dataset.tensors)
        loader = DataLoader(data, batch_size=16, sampler=[i for i in range(192) if i != 5])
        with pytest.warns(UserWarning, match="KeyError"):
            doctor = diagnosed(loader=loader, max_epochs=2, where=tmp_path, num_samples=192)
        assert doctor.result.steps == 24
        assert "KeyError" in doctor.result.left_out["units"]
        assert "secret" not in (tmp_path / "diagnosis.json").read_text()

    def test_of_the_examination_at_the_end_leaves_out_what_needs_it(self, monkeypatch):
        def broken(scene):
            raise ZeroDivisionError

        monkeypatch.setattr(_diagnosis_run, "look_around", broken)
        with pytest.warns(UserWarning, match="the spectrum at the end failed"):
            doctor = diagnosed(Classifier(lr=1e-6))
        assert {"saddle", "conditioning"} <= set(doctor.result.left_out)


class TestChecks:
    def test_that_are_switched_off_are_not_made(self):
        doctor = diagnosed(Classifier(bias=-10.0), checks={"units": False}, max_epochs=2)
        assert "units" not in doctor.result.checked
        assert "units" not in doctor.result.left_out
        assert "dead units" not in [f.problem for f in doctor.result.findings]

    def test_take_thresholds_by_name(self):
        lax = diagnosed(loader=clusters(shift=1000.0), thresholds={"inputs": {"offset": 1e9}}, max_epochs=2)
        assert "ill-conditioned inputs" not in [f.problem for f in lax.result.findings]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"checks": {"gradient": False}}, "did you mean 'gradients'"),
            ({"checks": {"units": 1}}, "must be True or False"),
            ({"thresholds": {"unit": {}}}, "did you mean 'units'"),
            ({"thresholds": {"units": {"dead_shar": 0.1}}}, "did you mean 'dead_share'"),
            ({"thresholds": {"units": {"dead_share": "a"}}}, "must be a number"),
            ({"thresholds": {"units": 0.5}}, "must be a mapping"),
            ({"thresholds": {"progress": {"momentum": 0.5}}}, "which it does not know"),
            ({"num_samples": 0}, "num_samples must be"),
            ({"every_n_steps": 0}, "every_n_steps must be"),
        ],
    )
    def test_refuse_what_they_do_not_know(self, options, message):
        with pytest.raises(ValueError, match=message):
            OptimizationDiagnostics(**options)

    def test_are_all_made_by_some_function(self):
        assert {*_diagnosis_exams.EXAMS, *_diagnosis_verdicts.VERDICTS} == {*CHECKS}
        assert not {*_diagnosis_exams.EXAMS} & {*_diagnosis_verdicts.VERDICTS}


def test_manual_optimization_leaves_out_what_needs_training_step_and_trains():
    class Manual(Classifier):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            return loss

    doctor = diagnosed(Manual())
    assert doctor.result.findings == ()
    assert "automatic optimization" in doctor.result.left_out["gradients"]
    assert "automatic optimization" in doctor.result.left_out["units"]


def test_fast_dev_run_leaves_no_file(tmp_path):
    doctor = diagnosed(where=tmp_path, fit_options={"fast_dev_run": True})
    assert doctor.result.steps == 1
    assert not (tmp_path / "diagnosis.json").exists()


def test_a_resumed_run_comes_to_the_same_diagnosis_as_one_in_a_piece(tmp_path):
    def session(max_epochs, callbacks=(), **options):
        doctor = OptimizationDiagnostics(every_n_steps=8, figures=False)
        fit(Classifier(bias=-10.0), clusters(), [doctor, *callbacks], max_epochs=max_epochs, **options)
        return doctor

    class Saving(Callback):
        def on_train_epoch_end(self, trainer, *_):
            if trainer.current_epoch == 3:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    session(8, [Saving()])
    resumed = session(8, ckpt_path=tmp_path / "half.ckpt").result
    whole = session(8).result
    assert [f.problem for f in whole.findings] == ["dead units"]
    assert resumed.findings == whole.findings
    assert (resumed.steps, resumed.samples, resumed.checked) == (whole.steps, whole.samples, whole.checked)
    torch.load(tmp_path / "half.ckpt", weights_only=True)


def test_the_scaled_rate_is_told_as_the_one_of_the_config(tmp_path):
    module = Classifier(optimizer=lambda p: torch.optim.SGD(p, lr=10.0, momentum=0.9))
    keys = {"lr": "optimizer.lr"}
    doctor = diagnosed(module, callbacks=[LearningRateScaling(base_batch_size=8)], keys=keys, where=tmp_path)
    remedy = doctor.result.findings[0].remedies[0]
    written = json.loads((tmp_path / "diagnosis.json").read_text())["findings"][0]["remedies"][0]
    assert float(written["overrides"][0].split("=")[1]) == pytest.approx(remedy.changes["lr"] / 2, rel=0.05)


def test_values_that_are_lost_late_in_the_data_are_found_when_the_loss_is(tmp_path):
    loader = clusters(samples=400)
    loader.dataset.tensors[0][390] = torch.nan
    doctor = diagnosed(loader=loader, num_samples=16)
    assert doctor.result.first == "invalid data"
    assert "1 of 400" in doctor.result.findings[0].evidence


@pytest.mark.parametrize("lost", [20, None])
def test_the_search_for_lost_values_ends_in_time_with_what_it_has(lost, monkeypatch):
    monkeypatch.setattr(_diagnosis_end, "_MOST_SECONDS", -1.0)
    monkeypatch.setattr(_diagnosis_end, "_read", lambda *_: iter([[torch.ones(4, 2)], pytest.fail]))
    loader = clusters(samples=400)
    loader.dataset.tensors[0][390] = torch.nan
    if lost is not None:
        monkeypatch.setattr(_diagnosis_end, "_read", lambda *_: iter([[torch.full((4, 2), torch.nan)], pytest.fail]))
    result = diagnosed(loader=loader, num_samples=16, max_epochs=2).result
    if lost is None:
        assert "longer than" in result.left_out["data"]
    else:
        assert "4 of 4" in next(f for f in result.findings if f.problem == "invalid data").evidence


def test_the_verdict_of_another_callback_on_the_reduction_is_taken(monkeypatch):
    monkeypatch.setattr(_diagnosis_exams, "reduction_on", lambda *_: pytest.fail("judged twice"))
    found = diagnosed(Classifier(reduction="sum", lr=0.1 / 16), callbacks=[LossReductionCheck("ignore")]).result
    assert found.first == "summed loss"
