import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _backend_is_left_as_it_was():
    from torchsmith import dispatch

    yield
    assert dispatch._active == "auto", "a test left another backend set"
