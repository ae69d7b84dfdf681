"""What is refused of strategies that cut parameters, without starting one."""

from types import SimpleNamespace

import pytest
import torch

from lbtrain._lightning import MisconfigurationException
from lbtrain.callbacks._sharded_measure import count_parameters, optimizer_of, refuse_engine, refuse_shards
from lbtrain.callbacks._sharded_optimizer import local_optimizer
from tests.modules import Plain


def under(name):
    """Return a trainer with a strategy of this name and nothing else."""
    return SimpleNamespace(strategy=type(name, (), {})(), world_size=1)


@pytest.mark.parametrize("engine", ["auto", "differences"])
def test_deepspeed_is_refused_whatever_the_engine(engine):
    with pytest.raises(MisconfigurationException, match=r"engine of its own.*strategy='ddp'"):
        refuse_engine(under("DeepSpeedStrategy"), "HessianSpectrum", "hessian", engine)


@pytest.mark.parametrize(("matrix", "engine"), [("ggn", "auto"), ("hessian", "autograd")])
def test_whole_parameters_take_every_matrix_and_engine(matrix, engine):
    trainer, module = under("DDPStrategy"), Plain()
    refuse_engine(trainer, "HessianSpectrum", matrix, engine)
    refuse_shards(trainer, module, "HessianSpectrum")
    assert count_parameters(trainer, module) == sum(p.numel() for p in module.parameters())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    assert optimizer_of(object(), optimizer) is optimizer


def test_a_twin_of_the_optimizer_names_the_parts_and_has_an_empty_state_for_an_empty_one(monkeypatch):
    monkeypatch.setattr("lbtrain.callbacks._sharded_optimizer.gather", lambda value: [value])
    params = [torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)]
    optimizer = torch.optim.Adam(params[:1], lr=0.1)
    optimizer.add_param_group({"params": params[1:], "lr": 0.2})
    params[0].sum().backward()
    optimizer.step()
    parts = [params[0].detach(), torch.zeros(0)]
    twin = local_optimizer(optimizer, params, parts)
    assert type(twin) is torch.optim.Adam
    assert [group["lr"] for group in twin.param_groups] == [0.1, 0.2]
    assert [group["params"][0] is part for group, part in zip(twin.param_groups, parts, strict=True)] == [True, True]
    assert torch.equal(twin.state[parts[0]]["exp_avg_sq"], optimizer.state[params[0]]["exp_avg_sq"])
    assert twin.state[parts[1]]["exp_avg_sq"].shape == (0,)
    assert float(twin.state[parts[1]]["step"]) == 1
    assert params[1] not in optimizer.state
