"""Autograd beside plain backward: graphs of gradients, kept and freed graphs, checkpoints, hooks, anomaly mode."""

import copy
import re

import pytest
import torch
from compare import compare
from layers import EVERY, MODULES, POOLS
from torch import nn as plain
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from torchsmith import native_nn, nn
from torchsmith.dispatch import explain


def made(name, library=nn, dtype=torch.float32):
    args, keywords, shape = MODULES[name]
    torch.manual_seed(0)
    module = getattr(library, name)(*args, **keywords).to(dtype)
    return module, torch.randn(shape).to(dtype).requires_grad_()


def total(outputs):
    return sum((i + 1) * (o * o).sum() for i, o in enumerate(tree_leaves(outputs)))


def three(name, results):
    """What ``results(module, input)`` gives for ours, for native, and for native in float64, compared."""
    arms = [made(name), made(name, native_nn), made(name, native_nn, torch.float64)]
    found = [[t.detach() for t in tree_leaves(results(*arm)) if t is not None] for arm in arms]
    assert found[0]
    for i, each in enumerate(zip(*found, strict=True)):
        compare(*each, what=f"result {i}")


@EVERY
def test_create_graph_and_retain_graph(name):
    def results(module, x):
        wanted = [x, *module.parameters()]
        loss = total(module(x))
        first = torch.autograd.grad(loss, wanted, retain_graph=True)
        again = torch.autograd.grad(loss, wanted, create_graph=True)
        assert not any(g.requires_grad for g in first)
        for a, b in zip(first, again, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        second = torch.autograd.grad(total(again), wanted, create_graph=True)
        # Of the third only in float64: a polynomial of high degree in the states, it multiplies their rounding.
        third = torch.autograd.grad(total(second), wanted, allow_unused=True) if x.dtype == torch.float64 else ()
        thirds.append([t for t in third if t is not None])
        return first, again, second

    thirds = []
    three(name, results)
    native = thirds[-1]
    results(*made(name, dtype=torch.float64))
    for a, b in zip(thirds[-1], native, strict=True):
        compare(a, b, b, "third derivative")


@EVERY
def test_twice_backward(name):
    """The graph is freed as torch's is, with torch's words, also after a changed weight or input."""

    def message(module, x, spoil=None):
        module, loss = module, total(module(x))
        if spoil:
            with torch.no_grad():
                spoil(module, x).mul_(2)
        else:
            loss.backward()
        with pytest.raises(RuntimeError) as error:
            loss.backward()
        return str(error.value)

    ours, native = message(*made(name)), message(*made(name, native_nn))
    assert "backward through the graph a second time" in ours and ours == native
    if name in POOLS:
        return

    def weight(module, x):
        return dict(module.named_parameters()).get("weight", next(iter(module.parameters())))

    for library in (nn, native_nn):
        text = message(*made(name, library), spoil=weight)
        assert re.search(r"modified by an inplace operation: .* is at version \d+; expected version \d+ instead", text)


@EVERY
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(name, reentrant):
    def results(module, x):
        kept = total(module(x))
        stored = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: stored.append(t) or t, lambda t: t):
            again = total(checkpoint(module, x, use_reentrant=reentrant))
        wanted = [x, *module.parameters()]
        first = torch.autograd.grad(kept, wanted)
        if reentrant:  # takes no .grad()
            again.backward()
            second = [t.grad for t in wanted]
        else:
            second = torch.autograd.grad(again, wanted)
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a, b), "the same computation again, bit for bit"
        return again, second

    three(name, results)


def test_checkpoint_of_a_stack():
    torch.manual_seed(0)
    model = plain.Sequential(
        nn.Conv2dReLU(1, 4, 3), nn.MaxPool2d(2), plain.Flatten(), nn.LinearReLU(36, 8), nn.Linear(8, 2)
    )
    x = torch.randn(3, 1, 8, 8, requires_grad=True)
    model(x).square().sum().backward()
    expected = [x.grad, *(p.grad for p in model.parameters())]
    x.grad = None
    model.zero_grad()
    checkpoint_sequential(model, 2, x, use_reentrant=False).square().sum().backward()
    for a, b in zip(expected, [x.grad, *(p.grad for p in model.parameters())], strict=True):
        assert torch.equal(a, b)


@EVERY
def test_saved_tensors_go_through_hooks(name):
    """What is saved can be packed away: nothing is kept beside ctx.save_for_backward."""
    module, x = made(name)
    wanted = [x, *module.parameters()]
    expected = torch.autograd.grad(total(module(x)), wanted)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (t.dtype, t.numpy(force=True).copy()), lambda p: torch.from_numpy(p[1]).to(p[0])
    ):
        loss = total(module(x))
    for a, b in zip(expected, torch.autograd.grad(loss, wanted), strict=True):
        assert torch.equal(a, b)


@EVERY
def test_anomaly_mode(name):
    """A NaN that a backward makes is found, and traced to the forward call; without one nothing is raised."""
    module, x = made(name)
    with torch.autograd.detect_anomaly(check_nan=True):
        total(module(x)).backward()
    error = []
    for library in (nn, native_nn):
        module, x = made(name, library)
        with pytest.warns(UserWarning, match="Traceback of forward call"), torch.autograd.detect_anomaly():
            outputs = tree_leaves(module(x))
            loss = (outputs[0] * float("inf") * 0).sum()
            with pytest.raises(RuntimeError, match="returned nan values in its 0th output") as raised:
                loss.backward()
        error.append(raised.type)
    assert error[0] is error[1]


@EVERY
def test_anomaly_names_our_function(name):
    """inf comes in, NaN goes out: the function named is the op's own."""
    module, x = made(name)
    if name in ("Conv2dReLUMaxPool2d", *POOLS):
        pytest.skip("a pool passes what comes in")
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(p.dim() == 1)  # the weights 0, the sums positive
    with pytest.warns(UserWarning, match="Traceback of forward call"), torch.autograd.detect_anomaly():
        outputs = tree_leaves(module(x))
        gradients = [torch.full_like(o, float("inf")) for o in outputs]
        pattern = "Function '_(Conv2d|Linear|Cell|Sequence)Backward' returned nan values"
        with pytest.raises(RuntimeError, match=pattern):
            torch.autograd.backward(outputs, gradients)


# ---------------------------------------------------------------------------------------------------- gradient penalty


class Critic(plain.Module):
    """A convolutional critic of 8 x 8 images, a recurrent one of sequences, or an MLP: on our ops or on native's."""

    def __init__(self, library, kind):
        super().__init__()
        self.kind = kind
        if kind == "cnn":
            self.body = plain.Sequential(
                library.Conv2d(1, 6, 3, padding=1), plain.Softplus(), library.MaxPool2d(2), plain.Flatten()
            )
        elif kind == "gru":
            self.body = library.GRU(8, 12, batch_first=True)
        else:
            self.body = plain.Sequential(plain.Flatten(), library.Linear(64, 96), plain.Tanh())
        self.head = library.Linear(12 if kind == "gru" else 96, 1)

    def forward(self, x):
        if self.kind == "gru":
            return self.head(self.body(x.squeeze(1))[0][:, -1])
        return self.head(self.body(x))


def train(library, kind, dtype, steps=25):
    """WGAN-GP's critic: real images are bright at the top, false ones are noise; |gradient at the input| is drawn to 1."""
    torch.manual_seed(0)
    critic = Critic(library, kind).to(dtype)
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(1)
    losses, norms = [], []
    for _ in range(steps):
        real, false = (torch.rand(16, 1, 8, 8, generator=generator).to(dtype) for _ in range(2))
        real = real * torch.linspace(1, 0, 8, dtype=dtype).view(8, 1)
        between = (real * 0.5 + false * 0.5).requires_grad_()
        (at_input,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        norm = at_input.flatten(1).norm(dim=1)
        loss = critic(false).mean() - critic(real).mean() + 10 * ((norm - 1) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        norms.append(norm.detach().mean())
    return torch.stack(losses), norms[-1], list(critic.parameters())


@pytest.mark.parametrize("kind", ["cnn", "mlp", "gru"])
def test_gradient_penalty_trains(kind):
    ours, norm, parameters = train(nn, kind, torch.float32)
    assert explain().implementation == "cpp"
    native, _, native_parameters = train(native_nn, kind, torch.float32)
    exact, exact_norm, exact_parameters = train(native_nn, kind, torch.float64)
    assert ours[-5:].mean() < 0.3 * ours[0] and abs(exact_norm - 1) < 0.35, (ours, norm)
    compare(ours, native, exact, "losses")
    for p, n, e in zip(parameters, native_parameters, exact_parameters, strict=True):
        compare(p.detach(), n.detach(), e.detach(), "parameter")


def test_gradient_penalty_by_torch_func():
    """The same penalty as a function: grad of a loss that holds a vmapped gradient; ours against native in float64."""
    found = []
    for library, dtype in ((nn, torch.float32), (native_nn, torch.float32), (native_nn, torch.float64)):
        torch.manual_seed(0)
        critic = Critic(library, "mlp").to(dtype)
        x = torch.rand(6, 1, 8, 8).to(dtype)
        parameters = {k: p.detach() for k, p in critic.named_parameters()}

        def loss(parameters, critic=critic, x=x):
            def score(image):
                return torch.func.functional_call(critic, parameters, (image.unsqueeze(0),)).sum()

            return ((torch.func.vmap(torch.func.grad(score))(x).flatten(1).norm(dim=1) - 1) ** 2).mean()

        found.append(tree_leaves(torch.func.grad(loss)(parameters)))
    for each in zip(*found, strict=True):
        compare(*each)


def test_double_backward_of_a_copy():
    """A deep copy shares nothing with its model, gradients of gradients included."""
    module, x = made("GRU")
    other = copy.deepcopy(module)
    (g,) = torch.autograd.grad(total(other(x)), x, create_graph=True)
    g.square().sum().backward()
    assert all(p.grad is None for p in module.parameters()) and all(p.grad is not None for p in other.parameters())
