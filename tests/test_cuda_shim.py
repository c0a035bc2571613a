"""The host shim under the CUDA tests, tested itself: right kernels pass in every thread order, each kind of mistake is caught."""

import re
import signal
import subprocess

import cuda_host
import pytest

pytestmark = pytest.mark.skipif(cuda_host.compiler() is None, reason="g++ is not installed")

RIGHT = (
    "barrier",
    "second-barrier",
    "all-written",
    "shuffles-and-votes",
    "copies",
    "mma-tf32",
    "mma-half",
    "mma-bfloat16",
    "ldmatrix",
    "tf32-rounding",
    "cooperative-grid",
)
#: mistake -> what must be said, in at least one thread order
WRONG = {
    "barrier-removed": "wrong",
    "second-barrier-removed": "wrong",
    "cell-not-written": "wrong",
    "store-past-the-end": "AddressSanitizer: heap-buffer-overflow",
    "store-past-shared": "AddressSanitizer: heap-buffer-overflow",
    "misaligned-vector": "SIGILL",  # by which UndefinedBehaviorSanitizer stops
    "shared-of-another-block": "wrong",
    "divergent-barrier": "divergent barrier: lanes of one warp wait at selftest.cpp:",
    "barrier-after-exit": "have exited before this barrier|exits while .* wait at a barrier",
    "half-warp-at-whole-mask": "waits for lane .* which has exited|exits while lane .* waits for it",
    "two-masks": "exits while lane (0|16) waits for it|divergent warp: ",
    "mask-without-self": "does not name the calling lane 0",
    "shuffle-from-outside": "shuffle from lane 20, which the mask 0000ffff does not name",
    "deadlock": "deadlock; waiting threads: .* at selftest.cpp:",
    "grid-barrier-alone": "grid barrier in a launch that is not cooperative",
    "grid-too-large": r"no device takes a grid of \(1, 70000, 1\)",
    "copy-read-early": "exits with a cp.async it never waited for",
    "copy-not-committed": "exits with a cp.async it never committed",
    "mma-fragments-exchanged": "wrong",
    "cooperative-grid-without-barrier": "wrong",
}


@pytest.fixture(scope="module")
def selftest():
    program = cuda_host.build_selftest()

    def run(case, order):
        done = subprocess.run([program, case, str(cuda_host.ORDERS[order])], capture_output=True, text=True)
        died = signal.Signals(-done.returncode).name if done.returncode < 0 else ""
        return done.stdout.strip() + done.stderr + died

    return run


def test_every_case_is_here(selftest):
    assert set(selftest("", "ascending").split()) == {*RIGHT, *WRONG}


@pytest.mark.parametrize("order", cuda_host.ORDERS)
@pytest.mark.parametrize("case", RIGHT)
def test_right_kernels_pass(selftest, case, order):
    assert selftest(case, order) == "ok"


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_caught(selftest, case):
    said = [selftest(case, order) for order in cuda_host.ORDERS]
    assert any(re.search(WRONG[case], text) for text in said), said
