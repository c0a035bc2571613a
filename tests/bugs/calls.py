"""Bugs to plant in the way from a public op to its kernel."""

from . import VALUES, Bug

BUGS = (
    Bug(
        "masks of dropout not scaled",
        "pyext/ops/_recurrent.py",
        ".bernoulli_(1 - p).div_(1 - p)",
        ".bernoulli_(1 - p)",
        VALUES + "gru and dropout",
    ),
    Bug(
        "odd padding at the top left",
        "pyext/ops/conv2d.py",
        "return total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2",
        "return total[0] - total[0] // 2, total[1] - total[1] // 2, total[0] // 2, total[1] // 2",
        VALUES + "conv2d and same",
    ),
    Bug(
        "saved relu output forgotten in the second derivative",
        "pyext/ops/linear.py",
        "return F.relu(y) if relu else y",
        "return y",
        "linear_relu and float64",
    ),
    Bug(
        "fake kernel ignores channels_last",
        "pyext/ops/maxpool2d.py",
        "if last else y",
        "if False else y",
        "test_opcheck and max_pool2d",
    ),
    Bug(
        "a call's key without strides",
        "csrc/call_key.cpp",
        "for (int32_t d = 0; d < found.ndim; ++d) mix(static_cast<Py_ssize_t>(found.strides[d]))",
        "mix(5)",
        "keys_are_the_same",
    ),
    Bug(
        "a call's key without the dtype",
        "csrc/call_key.cpp",
        "mix(found.code << 24 | found.bits << 16 | found.lanes)",
        "mix(6)",
        "keys_are_the_same",
    ),
    Bug(
        "a call's key without the threads",
        "csrc/call_key.cpp",
        "key.mix(ts_threads())",
        "key.mix(1)",
        "threads_are_part",
    ),
    Bug("autocast forgotten", "csrc/short_call.cpp", "asks(given(kAutocast), true) || ", "", "way_of_a_call"),
    Bug(
        "forward mode forgotten",
        "csrc/short_call.cpp",
        " ||\n      forward_mode(given(kForwardAd))",
        "",
        "way_of_a_call",
    ),
    Bug("export forgotten", "csrc/short_call.cpp", "compiling(given(kCompiler)) || ", "", "way_of_a_call"),
    Bug(
        "only the first tensor asked for its gradient",
        "csrc/short_call.cpp",
        "if (grad && holds(",
        "if (i == 0 && grad && holds(",
        "way_of_a_call",
    ),
    Bug(
        "a cell's short call lacks an argument",
        "pyext/ops/_cell.py",
        "*tensors, relu, False)\n            if",
        "*tensors, relu)\n            if",
        "short_way and gru_cell",
    ),
    Bug(
        "stride 0 accepted",
        "pyext/ops/maxpool2d.py",
        "if min(stride) <= 0:",
        "if min(stride) < 0:",
        "test_errors and max_pool2d",
    ),
)
