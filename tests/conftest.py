import os
import tempfile

import pytest
import torch

# What the user measured on this machine must not decide what is tested. Before torchsmith is imported: it reads it then.
_CACHE = tempfile.TemporaryDirectory(prefix="torchsmith-tests-")
os.environ["TORCHSMITH_CACHE"] = _CACHE.name


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _backend_is_left_as_it_was():
    from torchsmith import dispatch

    yield
    assert dispatch._active == "auto", "a test left another backend set"
    assert not dispatch.KNOWN, "a test left a table of measurements in use"
