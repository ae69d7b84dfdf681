"""What both ranks of test_diagnostics_ranks.py run: a diagnosis under DDP."""

import contextlib
import io
import itertools
import os
import sys
import warnings
from unittest import mock

import torch

from lbtrain import OptimizationDiagnostics
from lbtrain.callbacks import _diagnosis_end, _recorder_sample
from lbtrain.callbacks._recorder import Recorder
from lbtrain.callbacks._recorder_curvature import TopEigenvalue
from lbtrain.callbacks._recorder_losses import StepLosses
from lbtrain.callbacks._recorder_mean import WeightMean
from tests.modules import fit, same
from tests.unit.callbacks.diagnosed import Classifier, clusters

# Batches of 8 from every second sample are, together, the batches of 16 of one process.
TWO = {"strategy": "ddp", "devices": 2}
CASES = {
    "healthy": {},
    "dead": {"bias": -10.0},
    "unstable": {"optimizer": lambda p: torch.optim.SGD(p, lr=30.0, momentum=0.9)},
}
FEW = dict.fromkeys(("gradients", "reduction", "inputs", "labels", "symmetries"), False)
# What fails on rank 1 alone, once it is called that many times, and what is then missing on both.
FAULTS = {
    "the old weights": ((Recorder, "_look_ahead"), 9, "samples"),
    "the mean of the weights": ((WeightMean, "add"), 2, "samples"),
    "the losses of the steps": ((StepLosses, "_values"), 2, "samples"),
    "the gradient flow": ((_recorder_sample, "flow_by_layer"), 1, "samples"),
    "the top eigenvalue": ((TopEigenvalue, "measure"), 1, "curvature"),
    "the loss at the mean": ((WeightMean, "placed"), 0, ""),
    "the spectrum at the end": ((_diagnosis_end, "evaluation_size"), 0, "end"),
}


def planted(fault):
    """Return how a run went whose rank 1 fails in one place; that it comes back at all is the point."""
    (where, name), calls, _ = FAULTS[fault]
    count, work = itertools.count(), getattr(where, name)

    def fails(*args):
        result = work(*args)  # a sum over ranks inside it has its own agreement
        if os.environ["LOCAL_RANK"] == "1" and next(count) >= calls:
            raise ZeroDivisionError("token=secret")
        return result

    doctor, module = (
        OptimizationDiagnostics(every_n_steps=4, curvature_every=1, figures=False, checks=FEW),
        Classifier(lr=1e-3),
    )
    with mock.patch.object(where, name, fails), contextlib.redirect_stdout(io.StringIO()):
        trainer = fit(module, clusters(96, batch_size=8), [doctor], max_epochs=2, **TWO)
    run = doctor._run
    return {
        "steps": trainer.global_step,
        "left_out": run.recorder.sampler.left_out | run._missing,
        "seen": len(run.evidence.points),
    }


def diagnosis(case, loader, callbacks=True, **options):
    """Return the module and, with the diagnosis, what it found and printed."""
    torch.manual_seed(0)
    module, doctor = Classifier(**CASES[case]), OptimizationDiagnostics(every_n_steps=8, figures=False)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        fit(module, loader, [doctor] if callbacks else [], max_epochs=6, **options)
    return module, doctor.result, out.getvalue()


def of_ranks(folder):
    """Return what this rank has found, in plain Python."""
    found, weights = {}, {}
    os.chdir(folder)
    for case in CASES:
        module, result, out = diagnosis(case, clusters(batch_size=8), **TWO)
        found[case] = {
            "problems": [f.problem for f in result.findings],
            "evidence": [f.evidence for f in result.findings],
            "checked": list(result.checked),
            "left_out": dict(result.left_out),
            "printed": out,
        }
        weights[case] = module.state_dict()
    alone, _, _ = diagnosis("healthy", clusters(batch_size=8), callbacks=False, **TWO)
    found["faults"] = {fault: planted(fault) for fault in FAULTS}
    return found | {"same": same(weights["healthy"], alone.state_dict())}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.save(of_ranks(sys.argv[1]), f"{sys.argv[1]}/rank{os.environ['LOCAL_RANK']}.pt")
