"""Train with SAM in a loop of your own, without Lightning.

python examples/own_loop.py
"""

import torch

from lbtrain.functional.ascent import sam_ascent, shifted


def train(model, batches, loss_of, optimizer):
    """Go over the data once, each step with the gradient at the worst point nearby."""
    params = [p for p in model.parameters() if p.requires_grad]
    for x, y in batches:
        g = torch.autograd.grad(loss_of(model(x), y), params)
        optimizer.zero_grad()
        with shifted(params, sam_ascent(g, rho=0.05)):
            loss_of(model(x), y).backward()
        optimizer.step()


def main():
    """Fit a small network to random points labelled by a straight line, and print the loss after each epoch."""
    torch.manual_seed(0)
    x = torch.randn(256, 2)
    y = (x.sum(dim=1) > 0).long()
    batches = list(zip(x.split(32), y.split(32), strict=True))
    model = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss_of = torch.nn.functional.cross_entropy
    for epoch in range(1, 6):
        train(model, batches, loss_of, optimizer)
        with torch.no_grad():
            print(f"epoch {epoch}  loss {loss_of(model(x), y).item():.4f}")


if __name__ == "__main__":
    main()
