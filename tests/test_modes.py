"""Modes and surroundings of a module: autocast, gradient scaling, determinism, fake tensors, copies, processes, wrappers."""

import copy
import inspect
import io
import pickle
import warnings

import processes  # noqa: F401  (what its processes have imported, those of forkserver here have, too)
import pytest
import torch
from compare import compare
from layers import EVERY, MODULES, POOLS
from torch import multiprocessing as mp
from torch import nn as plain
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations, parametrize
from torch.utils._pytree import tree_leaves

import torchsmith
from torchsmith import dispatch, native_nn, nn
from torchsmith.dispatch import explain

WEIGHTED = pytest.mark.parametrize("name", [name for name in MODULES if name not in POOLS])


def made(name, library=nn, **keywords):
    args, own, shape = MODULES[name]
    torch.manual_seed(0)
    return getattr(library, name)(*args, **own, **keywords), torch.randn(shape)


def total(outputs):
    return sum((i + 1) * (o.float() * o.float()).sum() for i, o in enumerate(tree_leaves(outputs)))


def step(module, x):
    """Outputs and gradients, as a flat list."""
    x = x.detach().clone().requires_grad_()
    outputs = tree_leaves(module(x))
    return [*outputs, *torch.autograd.grad(total(outputs), [x, *module.parameters()])]


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


# --------------------------------------------------------------------------------------------------------- autocast


@pytest.mark.parametrize("name", ["GRU", "GRUCell"])
@pytest.mark.parametrize("state", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_autocast_of_a_state(name, state, given):
    """A gru's dtype on the CPU is the state's, promoted."""
    dtypes = []
    for library in (nn, native_nn):
        module, x = made(name, library)
        shape = (4, 2, 3) if name == "GRU" else (2, 3)
        hx = () if state is None else (torch.zeros(shape, dtype=state),)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            dtypes.append([t.dtype for t in tree_leaves(module(x.to(given), *hx))])
    assert dtypes[0] == dtypes[1]


@EVERY
def test_autocast(name):
    """bfloat16 on the CPU: dtypes of outputs and gradients are native's, values by the rule."""
    found = []
    for library in (nn, native_nn):
        module, x = made(name, library)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(step(module, x))
    module, x = made(name, native_nn)
    for a, b, exact in zip(*found, step(module.double(), x.double()), strict=True):
        assert a.dtype == b.dtype, (a.dtype, b.dtype)
        compare(a.bfloat16(), b.bfloat16(), exact)  # float32 leaves, but 16 bits of arithmetic
    with torch.autocast("cpu", enabled=False):
        assert tree_leaves(made(name)[0](x))[0].dtype == torch.float32


@pytest.fixture
def autocast_of_cuda(request):
    """CUDA's autocast switched on as torch.autocast does, which asks for a GPU first."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", request.param)
    try:
        yield request.param
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
        torch.clear_autocast_cache()


@EVERY
@pytest.mark.parametrize("autocast_of_cuda", [torch.float16, torch.bfloat16], indirect=True, ids=str)
def test_autocast_of_cuda_tensors(name, autocast_of_cuda):
    """Without a GPU: fake tensors have devices, dtypes and shapes, and no values. Forward; autograd asks for the device."""
    from torch._subclasses import FakeTensorMode

    if name in ("GRU", "GRUCell"):
        pytest.skip("native's has no fake kernel; ours: test_cuda_build.py")
    found = []
    for library in (nn, native_nn):
        module, x = made(name, library)
        with FakeTensorMode(), torch.no_grad():
            parameters = {k: torch.empty(p.shape, device="cuda") for k, p in module.named_parameters()}
            outputs = torch.func.functional_call(module, parameters, torch.empty(x.shape, device="cuda"))
        found.append([(t.shape, t.dtype, t.device.type) for t in tree_leaves(outputs)])
    assert found[0] == found[1]
    assert found[0][0][1:] == (torch.float32 if name in POOLS else autocast_of_cuda, "cuda")


@pytest.mark.parametrize("inner", ["vmap", "checkpoint"])
def test_autocast_around(inner):
    module, x = made("RNN")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = module(x)[0]
        if inner == "vmap":
            found = torch.func.vmap(lambda x: module(x)[0])(torch.stack([x, x]))[1]
        else:
            found = torch.utils.checkpoint.checkpoint(module, x.requires_grad_(), use_reentrant=False)[0]
            found.float().sum().backward()
            assert module.weight_ih_l0.grad.dtype == torch.float32
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)


def test_grad_scaler():
    """float16 with a scale: an overflow skips the step and halves the scale, as with native's modules."""
    histories = []
    for library in (nn, native_nn):
        torch.manual_seed(0)
        model = plain.Sequential(library.Linear(8, 16), plain.Tanh(), library.Linear(16, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=4)
        torch.manual_seed(1)
        history = []
        for _ in range(24):
            x = torch.randn(16, 8)
            with torch.autocast("cpu", dtype=torch.float16):
                loss = (model(x).float().squeeze(1) - x.sum(1)).square().mean()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            plain.utils.clip_grad_norm_(model.parameters(), 5.0)
            scaler.step(optimizer)
            scaler.update()
            history.append((scaler.get_scale(), float(loss.detach())))
        histories.append(history)
    ours, native = histories
    assert [scale for scale, _ in ours] == [scale for scale, _ in native]
    assert min(scale for scale, _ in ours) < 2.0**24, "no overflow was met"
    assert ours[-1][1] < 0.7 * ours[0][1]
    torch.testing.assert_close([loss for _, loss in ours], [loss for _, loss in native], rtol=2e-2, atol=2e-2)


# ---------------------------------------------------------------------------------------------------------- settings


@EVERY
@pytest.mark.parametrize("setting", ["deterministic", "warn only", "medium", "high"])
def test_settings_change_nothing_on_the_cpu(name, setting):
    """Deterministic algorithms are what runs anyway; lower precisions of float32 are for GPUs."""
    module, x = made(name)
    expected = step(module, x)
    before = torch.get_float32_matmul_precision()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if setting in ("medium", "high"):
                torch.set_float32_matmul_precision(setting)
            else:
                torch.use_deterministic_algorithms(True, warn_only=setting == "warn only")
            found = [step(module, x) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision(before)
    assert explain().implementation == "cpp"
    for again in found:
        assert_same(again, expected)


def test_deterministic_also_on_threads():
    """Sizes at which the work is split; the fill of uninitialised memory, too, leaves the results as they are."""
    cases = [(nn.Conv2d(8, 16, 3), (16, 8, 30, 30)), (nn.Linear(256, 512), (256, 256)), (nn.GRU(64, 96), (16, 32, 64))]
    before = torch.get_num_threads()
    try:
        for module, shape in cases:
            x = torch.randn(shape)
            expected = step(module, x)
            torch.use_deterministic_algorithms(True)
            assert torch.utils.deterministic.fill_uninitialized_memory
            for threads in (1, 2):
                torch.set_num_threads(threads)
                assert_same(step(module, x), expected)
            torch.use_deterministic_algorithms(False)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(before)


@pytest.mark.parametrize("setting", ["inference_mode", "no_grad", "set_grad_enabled"])
@EVERY
def test_without_gradients(name, setting):
    module, x = made(name)
    expected = tree_leaves(module(x))
    scope = torch.set_grad_enabled(False) if setting == "set_grad_enabled" else getattr(torch, setting)()
    with scope:
        found = tree_leaves(module(x))
    assert not any(t.requires_grad for t in found)
    assert_same(found, [t.detach() for t in expected])


# ------------------------------------------------------------------------------------------------ tensors without data


@EVERY
def test_meta_and_fake_tensors(name):
    from torch._subclasses import FakeTensorMode

    module, x = made(name)
    expected = step(module, x)
    shapes = [(t.shape, t.dtype, t.stride()) for t in expected]
    meta = step(copy.deepcopy(module).to("meta"), x.to("meta"))
    assert all(t.device.type == "meta" for t in meta)
    assert [(t.shape, t.dtype, t.stride()) for t in meta] == shapes
    with FakeTensorMode() as mode:
        args, keywords, shape = MODULES[name]
        fake = step(getattr(nn, name)(*args, **keywords), torch.randn(shape))
    assert [(t.shape, t.dtype, t.stride()) for t in fake] == shapes
    assert all(t.fake_mode is mode for t in fake)


@WEIGHTED
def test_to_empty_and_skip_init(name):
    module, x = made(name)
    empty = made(name, device="meta")[0]
    with pytest.raises(NotImplementedError, match="no data"):
        empty.to("cpu")
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(module.state_dict())
    assert_same(step(filled, x), step(module, x))
    assigned = made(name, device="meta")[0]
    assigned.load_state_dict(module.state_dict(), assign=True)
    assert_same(step(assigned, x), step(module, x))
    if "device" not in inspect.signature(type(module)).parameters:
        return  # nor does skip_init take torch.nn's RNN and GRU
    args, keywords, _ = MODULES[name]
    skipped = plain.utils.skip_init(type(module), *args, **keywords)
    skipped.load_state_dict(module.state_dict())
    assert_same(step(skipped, x), step(module, x))


# ---------------------------------------------------------------------------------------------- copies and processes


@EVERY
def test_copies_compute_the_same(name):
    module, x = made(name)
    expected = step(module, x)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    loaded = made(name)[0]
    for p in loaded.parameters():
        plain.init.zeros_(p)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for other in (copy.deepcopy(module), copy.copy(module), pickle.loads(pickle.dumps(module)), loaded):
        assert type(other) is type(module)
        assert_same(step(other, x), expected)
    if list(module.parameters()):  # the deep copy has a life of its own
        other = copy.deepcopy(module)
        plain.init.zeros_(next(other.parameters()))
        assert_same(step(module, x), expected)


def _train_in_place(module, x):
    torch.set_num_threads(1)
    loss = total(module(x))
    loss.backward()
    with torch.no_grad():
        for p in module.parameters():
            p -= 0.1 * p.grad


def test_shared_memory():
    """A model in shared memory, trained by another process (Hogwild): its steps arrive here."""
    model = plain.Sequential(nn.LinearReLU(5, 8), nn.Linear(8, 2))
    x = torch.randn(4, 5)
    twin = copy.deepcopy(model)
    model.share_memory()
    assert all(p.is_shared() for p in model.parameters())
    worker = mp.get_context("forkserver").Process(target=_train_in_place, args=(model, x))
    worker.start()
    worker.join(120)
    assert worker.exitcode == 0
    _train_in_place(twin, x)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


class Features(torch.utils.data.Dataset):
    """Samples that go through our ops in the worker: a preprocessing network."""

    def __init__(self):
        torch.manual_seed(0)
        self.filter = nn.Conv2dReLU(1, 2, 3).requires_grad_(False)
        self.pool = nn.MaxPool2d(2)

    def __len__(self):
        return 6

    def __getitem__(self, index):
        torch.manual_seed(index)
        return self.pool(self.filter(torch.randn(1, 8, 8)))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_data_loader_workers(start):
    if start not in mp.get_all_start_methods():
        pytest.skip(f"no {start} on this platform")
    data = Features()
    here = torch.stack([data[i] for i in range(len(data))])  # also: threads of this process exist before the fork
    nn.Linear(512, 512)(torch.randn(256, 512))
    loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context=start)
    torch.testing.assert_close(torch.cat(list(loader)), here, rtol=0, atol=0)


# -------------------------------------------------------------------------------------------------- parametrizations


@WEIGHTED
@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "orthogonal", "own"])
def test_parametrizations(name, kind):
    """Weights that are computed: gradients reach what they are computed from, and it is used in every call."""

    class Scaled(plain.Module):
        def forward(self, w):
            return w * 0.5

    found = []
    for library, dtype in ((nn, torch.float32), (native_nn, torch.float32), (native_nn, torch.float64)):
        module, x = made(name, library)
        weights = [n for n, p in list(module.named_parameters()) if n.startswith("weight")]
        module.eval()  # spectral_norm iterates in training only
        for weight in weights:
            torch.manual_seed(1)
            if kind == "own":
                parametrize.register_parametrization(module, weight, Scaled())
            else:
                getattr(parametrizations, kind)(module, weight)
        module, x = module.to(dtype), x.to(dtype)
        results = step(module, x)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
        # RNN and GRU of torch.nn ask for each weight several times a call, and spectral_norm iterates each time.
        module.train(kind != "spectral_norm" or name not in ("RNN", "GRU"))
        total(module(x)).backward()
        optimizer.step()
        module.eval()
        results += [t.detach() for t in tree_leaves(module(x))]
        for weight in weights:
            parametrize.remove_parametrizations(module, weight)
        results += [t.detach() for t in tree_leaves(module(x))]
        found.append(results)
    for each in zip(*found, strict=True):
        compare(*each)


@pytest.mark.parametrize(
    "op, shapes, left",
    [
        ("conv2d", [(2, 3, 9, 9), (4, 3, 3, 3)], True),
        ("conv2d_relu_maxpool2d", [(64, 64, 64, 64), (64, 64, 3, 3)], True),
        ("conv2d_relu_maxpool2d", [(2, 3, 9, 9), (4, 3, 3, 3)], False),
        ("linear", [(4, 6), (3, 6)], True),
        ("linear_relu", [(1024, 1024), (1024, 1024)], True),
        ("linear_relu", [(4, 6), (3, 6)], False),
    ],
)
def test_rules_for_gpus(op, shapes, left, monkeypatch):
    """By tensors that only say that they are on one; tests/on_device.py has real ones."""
    monkeypatch.setattr(dispatch, "RULES", True)
    with FakeTensorMode():
        getattr(torchsmith, op)(*(torch.empty(shape, device="cuda") for shape in shapes))
    assert (torchsmith.explain().reason == dispatch.NATIVE_ON_CUDA) == left, torchsmith.explain()
    with FakeTensorMode(), torchsmith.backend("cpp"):
        getattr(torchsmith, op)(*(torch.empty(shape, device="cuda") for shape in shapes))
    assert torchsmith.explain().reason != dispatch.NATIVE_ON_CUDA
