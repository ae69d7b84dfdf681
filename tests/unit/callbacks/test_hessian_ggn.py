"""HessianSpectrum of the Gauss-Newton matrix: which losses have one, and that it is told before training."""

import pytest
import torch

from lbtrain import HessianSpectrum
from lbtrain._lightning import MisconfigurationException
from tests.modules import Plain, digits_like, fit

EXACT = {"tol": 1e-9, "figures": ()}


class OwnLoss(Plain):
    """A loss that is no function of torch.nn.functional, mean of z^4; its outputs may be told."""

    tell, steps = False, 0

    def training_step(self, batch, batch_idx):
        self.steps += self.training
        z = self.net(batch[0])
        loss = (z**4).sum(1).mean()
        return {"loss": loss, "outputs": z} if self.tell else loss


@pytest.mark.parametrize("options", [{}, {"engine": "differences"}, {"engine": "autograd", "every_n_steps": 2}])
def test_a_loss_whose_outputs_are_not_known_is_refused_before_the_first_step(options):
    module = OwnLoss()
    with pytest.raises(MisconfigurationException, match=r'"outputs": outputs} from training_step') as refused:
        fit(module, digits_like(), [HessianSpectrum(top_k=1, matrix="ggn", **options)])
    assert module.steps == 0
    assert "losses[" not in str(refused.value)


def test_outputs_returned_from_training_step_are_those_of_the_gauss_newton_matrix():
    module, callback = OwnLoss(lr=0.0, dtype=torch.float64), HessianSpectrum(top_k=1, matrix="ggn", **EXACT)
    module.tell = True
    data = digits_like(dtype=torch.float64)
    fit(module, data, [callback])
    x, (names, params) = data.dataset.tensors[0], zip(*module.net.named_parameters(), strict=True)
    jacobians = torch.autograd.functional.jacobian(
        lambda *p: torch.func.functional_call(module.net, dict(zip(names, p, strict=True)), (x,)), params
    )
    J = torch.cat([j.reshape(48 * 3, -1) for j in jacobians], 1)
    H = 12 * module.net(x).detach().flatten() ** 2 / 48
    exact = float(torch.linalg.eigvalsh(J.T * H @ J)[-1])
    assert callback.result.spectrum.lambda_max == pytest.approx(exact, rel=1e-6)
