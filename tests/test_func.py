"""torch.func's transforms and what else differentiates in unusual ways, on every module, against torch.nn's."""

from functools import partial

import pytest
import torch
from compare import compare, nudged
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._pytree import tree_leaves, tree_map

from torchsmith import native_nn, nn
from torchsmith.dispatch import backend, explain

#: name: (module, arguments, keywords, shapes of one sample's inputs: a batch of two, or one without a batch)
MODULES = {
    "conv2d": ("Conv2d", (2, 3, 3), {"padding": 1}, [(2, 2, 6, 5)]),
    "conv2d, groups, one image": ("Conv2d", (4, 6, 3), {"groups": 2, "stride": 2, "bias": False}, [(4, 6, 5)]),
    "conv2d relu": ("Conv2dReLU", (2, 3, 3), {}, [(2, 2, 6, 5)]),
    "conv2d relu pool": ("Conv2dReLUMaxPool2d", (2, 3, 3), {}, [(2, 2, 6, 6)]),
    "pool": ("MaxPool2d", (2,), {}, [(2, 3, 6, 4)]),
    "linear": ("Linear", (5, 3), {}, [(2, 5)]),
    "linear relu, one row": ("LinearReLU", (5, 3), {}, [(5,)]),
    "rnn cell": ("RNNCell", (5, 3), {}, [(2, 5), (2, 3)]),
    "rnn cell relu, one row, no state": ("RNNCell", (5, 3), {"nonlinearity": "relu"}, [(5,)]),
    "gru cell": ("GRUCell", (5, 3), {}, [(2, 5), (2, 3)]),
    "gru cell, no bias": ("GRUCell", (5, 3), {"bias": False}, [(2, 5), (2, 3)]),
    "rnn": ("RNN", (5, 3), {}, [(4, 2, 5), (1, 2, 3)]),
    "rnn relu, both directions": (
        "RNN",
        (5, 3),
        {"nonlinearity": "relu", "bidirectional": True, "batch_first": True, "num_layers": 2},
        [(2, 4, 5)],
    ),
    "gru": ("GRU", (5, 3), {}, [(4, 2, 5), (1, 2, 3)]),
    "gru, one sequence": ("GRU", (5, 3), {"batch_first": True}, [(4, 5)]),
    "gru, three layers, both directions": (
        "GRU",
        (5, 3),
        {"num_layers": 3, "bidirectional": True, "batch_first": True},
        [(2, 4, 5), (6, 2, 3)],
    ),
    "gru, no bias": ("GRU", (5, 3), {"num_layers": 2, "bias": False}, [(4, 2, 5)]),
}
EVERY = pytest.mark.parametrize("name", MODULES)
RECURRENT = pytest.mark.parametrize("name", [name for name, given in MODULES.items() if given[0] in ("RNN", "GRU")])
COUNT = 3  # samples
OURS = tuple({getattr(nn, given[0]) for given in MODULES.values()})


class Case:
    """A module of ours and its twins: torch.nn's in float32, or in float64 as the exact one.

    ``change``: what is done to parameters and inputs.
    """

    def __init__(self, name, library, dtype=torch.float32, seed=0, change=lambda t: t):
        kind, args, keywords, self.shapes = MODULES[name]
        torch.manual_seed(seed)
        self.module = getattr(library, kind)(*args, **keywords).to(dtype)
        self.parameters = {k: change(p.detach()) for k, p in self.module.named_parameters()}
        self.dtype, self.change = dtype, change

    def inputs(self, *lead):
        torch.manual_seed(1)
        values = [torch.randn(*lead, *shape).to(self.dtype) for shape in self.shapes]
        return tuple(map(self.change, values))

    def forward(self, parameters, *inputs):
        return tuple(tree_leaves(functional_call(self.module, parameters, inputs)))

    def loss(self, parameters, *inputs):
        # The second output weighs in differently, so that each gradient has its own path.
        return sum(
            (i + 1) * (o * o).sum() + (o * o * o).mean() for i, o in enumerate(self.forward(parameters, *inputs))
        )


def three(name, **keywords):
    return [
        Case(name, lib, dtype, **keywords)
        for lib, dtype in ((nn, torch.float32), (native_nn, torch.float32), (native_nn, torch.float64))
    ]


def same(*found):
    """Ours, native's, any number of native's from nudged values, the exact one."""
    found = [tree_leaves(each) for each in found]
    assert found[0]
    for i, (ours, *native, exact) in enumerate(zip(*found, strict=True)):
        compare(ours, native, exact, what=f"result {i}")


def one_by_one(function, *mapped):
    """What vmap means: a call for each sample, the results stacked."""
    results = [function(*tree_map(lambda t, i=i: t[i], mapped)) for i in range(COUNT)]
    return tree_map(lambda *each: torch.stack(each), *results)


# --------------------------------------------------------------------------------------------------------------- vmap


@EVERY
def test_vmap(name):
    ours, *others = three(name)
    found = vmap(lambda *x: ours.forward(ours.parameters, *x))(*ours.inputs(COUNT))
    same(found, *(one_by_one(partial(c.forward, c.parameters), *c.inputs(COUNT)) for c in others))


@EVERY
def test_gradients_of_each_sample(name):
    """vmap(grad(loss)): of every parameter, and of the inputs."""
    ours, *others = three(name)

    def gradients(case):
        return grad(case.loss, argnums=tuple(range(1 + len(case.shapes))))

    found = vmap(gradients(ours), in_dims=(None, *(0 for _ in ours.shapes)))(ours.parameters, *ours.inputs(COUNT))
    same(found, *(one_by_one(partial(gradients(c), c.parameters), *c.inputs(COUNT)) for c in others))


@EVERY
def test_ensemble(name):
    """Weights mapped, with the inputs and without."""
    if not Case(name, nn).parameters:
        pytest.skip("without parameters")
    for dims in ((0, 0), (0, None)):
        found = []
        for i, case in enumerate(three(name)):
            members = [Case(name, native_nn, case.dtype, seed=s) for s in range(COUNT)]
            parameters = {k: torch.stack([m.parameters[k] for m in members]) for k in case.parameters}
            inputs = case.inputs(COUNT) if dims[1] == 0 else case.inputs()
            function = grad(lambda p, x, case=case: case.loss(p, *x), argnums=(0, 1))
            if i == 0:
                found.append(vmap(function, in_dims=dims)(parameters, inputs))
            elif dims[1] == 0:
                found.append(one_by_one(function, parameters, inputs))
            else:
                found.append(one_by_one(lambda p, x=inputs, f=function: f(p, x), parameters))
        same(*found)


@EVERY
def test_vmap_in_vmap_and_other_dimensions(name):
    ours, *others = three(name)

    def gradients(case, *x):
        return grad(case.loss)(case.parameters, *x) if case.parameters else case.forward({}, *x)

    inputs = ours.inputs(2, COUNT)
    moved = [t.movedim(0, -1) for t in inputs]
    found = vmap(vmap(lambda *x: gradients(ours, *x)), in_dims=-1)(*moved)
    flat = [
        [gradients(c, *(t[i, j] for t in c.inputs(2, COUNT))) for i in range(2) for j in range(COUNT)] for c in others
    ]
    stacked = [tree_map(lambda *each: torch.stack(each).unflatten(0, (2, COUNT)), *rows) for rows in flat]
    same(found, *stacked)


def test_ensemble_of_modules():
    """The recipe of torch's documentation: stack_module_state and vmap."""
    members = [nn.GRU(4, 3) for _ in range(3)]
    parameters, buffers = stack_module_state(members)
    x = torch.randn(5, 2, 4)
    y, h = vmap(lambda p, b: functional_call(members[0], (p, b), (x,)))(parameters, buffers)
    for i, member in enumerate(members):
        expected_y, expected_h = member(x)
        torch.testing.assert_close(y[i], expected_y)
        torch.testing.assert_close(h[i], expected_h)
    y.sum().backward()  # through vmap, by the autograd around it
    for key, p in parameters.items():
        for i, member in enumerate(members):
            member.zero_grad()
            member(x)[0].sum().backward()
            torch.testing.assert_close(p.grad[i], dict(member.named_parameters())[key].grad)


@pytest.mark.parametrize("kind", ["GRU", "RNN"])
def test_dropout_under_vmap(kind):
    module = getattr(nn, kind)(4, 6, num_layers=2, dropout=0.5)
    x = torch.ones(3, 5, 2, 4)
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(module)(x)
    alike = vmap(module, randomness="same")(x)[0]
    assert torch.equal(alike[0], alike[1]) and torch.equal(alike[0], alike[2])
    differing = vmap(module, randomness="different")(x)[0]
    assert not torch.equal(differing[0], differing[1])
    module.eval()
    torch.testing.assert_close(vmap(module)(x)[0][1], module(x[1])[0])


# ---------------------------------------------------------------------------------------- derivatives without samples


@EVERY
def test_grad_and_vjp(name):
    found = []
    for case in three(name):
        inputs = case.inputs()
        first = grad(case.loss, argnums=tuple(range(1 + len(inputs))))(case.parameters, *inputs)
        outputs, pull = vjp(lambda *x, case=case: case.forward(case.parameters, *x), *inputs)
        torch.manual_seed(2)
        found.append((first, outputs, pull(tuple(torch.randn(o.shape).to(o) for o in outputs))))
    same(*found)


@EVERY
@pytest.mark.parametrize("transform", [jacrev, jacfwd, lambda f, argnums: jacrev(jacrev(f, argnums), argnums), hessian])
def test_jacobians(name, transform):
    """Of every output by every input and parameter; second derivatives of the loss.

    Those are few numbers after a long chain, where one run of native may be right by luck.
    """
    second = transform is not jacrev and transform is not jacfwd
    ours, native, exact = three(name)
    more = [Case(name, native_nn, change=nudged) for _ in range(2 * second)]
    found = []
    for case in (ours, native, *more, exact):
        function = case.loss if second else case.forward
        last = len(case.shapes)
        found.append(
            transform(function, argnums=(0, last) if case.parameters else (last,))(case.parameters, *case.inputs())
        )
    same(*found)


@EVERY
def test_forward_mode(name):
    """torch.func.jvp, dual numbers, and a tangent through the gradients."""
    found = []
    for case in three(name):
        inputs = case.inputs()
        torch.manual_seed(3)
        directions = tuple(torch.randn(x.shape).to(x) for x in inputs)

        def function(*x, case=case):
            return case.forward(case.parameters, *x)

        def gradients(*x, case=case):
            return grad(case.loss)(case.parameters, *x) if case.parameters else case.forward({}, *x)

        results = [jvp(function, inputs, directions), jvp(gradients, inputs, directions)]
        with forward_ad.dual_level():
            outputs = function(*(forward_ad.make_dual(x, d) for x, d in zip(inputs, directions, strict=True)))
            results.append([forward_ad.unpack_dual(o).tangent for o in outputs])
        stacked = torch.stack([directions[0], directions[0] * 2, -directions[0]])

        def along(direction, x=inputs, f=function, others=directions[1:]):
            return jvp(f, x, (direction, *others))[1]

        # Native has no rule for it.
        results.append(vmap(along)(stacked) if isinstance(case.module, OURS) else one_by_one(along, stacked))
        found.append(results)
    same(*found)


@EVERY
def test_tangents_of_output_gradients(name):
    """A backward pass recorded before, its incoming gradients dual numbers."""
    found = []
    for case in three(name):
        inputs = tuple(x.requires_grad_() for x in case.inputs())
        outputs = case.forward(case.parameters, *inputs)
        torch.manual_seed(3)
        grads, tangents = ([torch.randn(o.shape).to(o) for o in outputs] for _ in range(2))
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(g, t) for g, t in zip(grads, tangents, strict=True)]
            back = torch.autograd.grad(outputs, inputs, duals)
            found.append([forward_ad.unpack_dual(g)[:2] for g in back])
    same(*found)


@EVERY
def test_batched_gradients(name):
    """is_grads_batched, and what builds on it: torch.autograd.functional.jacobian(vectorize=True)."""
    found = []
    for case in three(name):
        inputs = tuple(x.requires_grad_() for x in case.inputs())
        outputs = case.forward(case.parameters, *inputs)
        torch.manual_seed(3)
        grads = [torch.randn(COUNT, *o.shape).to(o) for o in outputs]
        for create in (False, True):
            back = torch.autograd.grad(
                outputs, inputs, grads, is_grads_batched=True, retain_graph=True, create_graph=create
            )
            found.append([g.detach() for g in back])
        jacobian = torch.autograd.functional.jacobian(
            lambda *x, case=case: case.forward(case.parameters, *x)[-1], inputs, vectorize=True
        )
        found[-2:] = [[found[-2], found[-1], jacobian]]
    same(*found)


@RECURRENT
def test_packed_sequences(name):
    """Sequences of different lengths, which native takes in none of these: compared with what autograd finds for it."""
    found = []
    for case in three(name):
        torch.manual_seed(4)
        padded = torch.randn(5, 3, 5).to(case.dtype)
        # Packed outside: torch's own packing reads memory that transforms hide.
        data, *layout = pack_padded_sequence(padded, torch.tensor([2, 5, 3]), enforce_sorted=False)

        def function(data, *parameters, case=case, layout=layout):
            given = dict(zip(case.parameters, parameters, strict=True))
            y, hn = functional_call(case.module, given, (PackedSequence(data, *layout),))
            return y.data, hn

        def loss(*arguments, function=function):
            return sum((o * o).sum() for o in function(*arguments))

        arguments = (data, *case.parameters.values())
        which = tuple(range(len(arguments)))
        members = [arguments, [t * 0.5 for t in arguments], [t * 0 for t in arguments]]
        if isinstance(case.module, OURS):
            stacked = [torch.stack(each) for each in zip(*members, strict=True)]
            found.append(
                (
                    grad(loss, argnums=which)(*arguments),
                    jacrev(function, argnums=which)(*arguments),
                    vmap(grad(loss, argnums=which))(*stacked),
                )
            )
        else:
            each = [torch.autograd.functional.vjp(loss, tuple(m))[1] for m in members]
            jacobian = torch.autograd.functional.jacobian(function, arguments)
            found.append((each[0], jacobian, tree_map(lambda *t: torch.stack(t), *each)))
    same(*found)


def test_explain_says_why():
    """A sequence keeps its kernel under vmap and grad; what ATen does cheaper, and forward mode, are its own."""
    x = torch.randn(3, 4, 2, 5)
    gru, linear = nn.GRU(5, 3), nn.Linear(5, 3)
    vmap(gru)(x)
    assert explain().implementation == "cpp" and explain().op == "gru"
    grad(lambda x: gru(x)[0].sum())(x[0])
    assert explain().implementation == "cpp"
    jvp(lambda x: gru(x)[0], (x[0],), (x[0],))
    assert explain().implementation == "torch" and "forward-mode" in explain().reason
    vmap(linear)(x)
    assert explain().implementation == "torch" and "inside a torch.func transform" in explain().reason
    with backend("torch"):  # also without our kernels, where native has no rule
        torch.testing.assert_close(vmap(lambda x: gru(x)[0])(x)[1], gru(x[1])[0])
        assert 'backend("torch")' in explain().reason
