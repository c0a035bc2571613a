"""Why a convolution is native's by default: rules from measurements, for calls that were not measured on this machine."""

from __future__ import annotations

from math import prod

import torch

from .. import _native
from ..dispatch import NATIVE_ON_CUDA, NATIVE_WITH_AMX, automatic, unmeasured_on_cuda, unmeasured_with_amx

__all__ = ["MANY_CHANNELS", "copied_layout", "rule", "rule_on_cuda", "rule_with_amx"]

#: What :func:`rule` goes by: products of channels that are many, with windows of more than 9 cells too; output cells that are
#: few, and many for a depthwise convolution with a large stride.
MANY_CHANNELS, MANY_FOR_LARGE_WINDOWS = 128 * 128, 64 * 64
FEW_CELLS, MANY_CELLS = 16, 128
#: Input channels, and from how many cells on, with which ours won over many output channels too, in windows of at most 25 cells.
FEW_INPUTS, CELLS_FOR_FEW_INPUTS = range(8, 43), 512
MANY = "many channels: native's convolution is ahead"
#: Multiply-adds from which cuDNN, ReLU and pool are taken to be faster than ours in one on a GPU: at 2^24 ours was 1.1-1.8 times as fast.
LARGE_ON_CUDA = 2**26
#: Where ours is on vectors: multiply-adds from which AMX is ahead, without and with a pool, and cells of a window, over channels, that fill its tiles.
LARGE_WITH_AMX, LARGE_POOLED_WITH_AMX, DEEP_WITH_AMX = 2**22, 2**26, 64


def rule(input, weight, stride, padding, dilation, groups) -> str:
    """Why a convolution without a pool is native's where nothing was measured: native/ours was below 1 in such calls.

    On AVX2 (1.0-1.5 with many channels else): 0.85-0.95 of windows of 25 and 49 cells, 0.6-0.98 of few cells in several
    images (1.4-3 in one), 0.8 of depthwise ones with a stride above 2. With AVX-512 strided depthwise ones win 1.4-1.9, but for
    few cells (0.2-0.9; 1.6-3.6 where rows keep their length); many channels lost when last measured, 64 to 64 in a window of
    3 x 3 0.96 on AMD's and 0.73-0.89 on Intel's; from 16-40 to 128-512 over 576 cells and more ours won 1.0-1.5. Of bfloat16, both on AMX, 64 to 64 0.8-1.3, 256 to 256 0.6. Of float64 only
    1 x 1 windows over many channels lost (0.88-1.0; larger ones won 1.0-1.4, depthwise ones 3-30), and of float16 nothing:
    with its backward, native's takes 16 to 250 times as long.
    """
    if input.dim() != 4 or weight.dim() != 4 or not input.is_cpu or input.dtype == torch.float16:
        return ""
    outputs, inputs, height, width = weight.shape
    steps = [stride, stride] if isinstance(stride, int) else stride
    if not isinstance(steps, (list, tuple)) or not all(isinstance(s, int) and s > 0 for s in steps):
        return ""  # to be refused in words
    cells, taps = input.shape[2] * input.shape[3] // prod(steps), height * width
    if input.dtype == torch.float64:
        return MANY if taps == 1 and groups == 1 and outputs * inputs >= MANY_CHANNELS else ""
    avx512 = _native.isa_active().startswith("avx512")
    if groups == 1:
        many = MANY_FOR_LARGE_WINDOWS if taps > 1 else MANY_CHANNELS
        few_inputs = (
            inputs in FEW_INPUTS and taps <= 25 and cells >= CELLS_FOR_FEW_INPUTS and input.dtype == torch.float32
        )
        if avx512 and outputs * inputs >= many and (taps > 1 or cells < FEW_CELLS // 2) and not few_inputs:
            return MANY
        if taps > 9 and outputs * inputs >= MANY_FOR_LARGE_WINDOWS:
            return "many channels and a large window: native's convolution, blocked by channels, is ahead"
        if taps > 1 and outputs * inputs >= MANY_CHANNELS and cells < FEW_CELLS and input.shape[0] > 1:
            return "many channels, few cells: native's convolution, blocked by channels, is ahead"
    elif inputs == 1:
        if avx512 and cells <= FEW_CELLS and not _rows_keep_length(width, steps, padding, dilation):
            return "few cells a plane: native's depthwise convolution, with channels in the lanes, is ahead"
        if not avx512 and max(steps) > 2 and cells > MANY_CELLS:
            return "depthwise, stride above 2: splitting columns without AVX-512 takes longer than native's convolution"
    return ""


def _rows_keep_length(width, steps, padding, dilation) -> bool:
    """Whether output rows are as long as the image's, which csrc/cpu/conv_depthwise_lines.h is for."""
    beside, apart = (v[-1] if isinstance(v, (list, tuple)) and v else v for v in (padding, dilation))
    if max(steps) > 1 or not isinstance(apart, int):
        return False
    return padding == "same" or (isinstance(beside, int) and 2 * beside == apart * (width - 1))


def copied_layout(name, input, groups) -> str:
    """Why channels_last convolutions are native's: ours would transpose each tensor, and with that takes 1.1 to 1.6 times as
    long on the shapes measured. Depthwise ones have a kernel of their own, and before a pool the copies pay, as in float16, of
    which native's, with its backward, takes 80 to 130 times as long."""
    if (
        not automatic(name)
        or input.dim() != 4
        or groups == input.shape[1]
        or not input.is_cpu
        or input.dtype == torch.float16
    ):
        return ""
    last = input.is_contiguous(memory_format=torch.channels_last)
    return "channels_last: native reads it as it lies, ours would copy it" if last else ""


def rule_with_amx(name, input, weight, groups, pool) -> str:
    """Of bfloat16 on an Emerald Rapids ours on vectors was 0.3-0.8 as fast in windows of 3 x 3 and 5 x 5 over 16 channels and more; twice
    as fast in small 1 x 1 ones, and 1.5 to 4 times where a pool follows a convolution that is not large."""
    if groups != 1 or input.dim() < 3 or weight.dim() != 4 or not unmeasured_with_amx(name, input):
        return ""
    work = input.numel() // max(1, input.shape[-3]) * weight.numel()
    large = work >= (LARGE_POOLED_WITH_AMX if pool else LARGE_WITH_AMX)
    return NATIVE_WITH_AMX if large and weight.numel() >= weight.shape[0] * DEEP_WITH_AMX else ""


def rule_on_cuda(name, input, weight, pool) -> str:
    """cuDNN's convolutions are 1 to 4 times as fast as ours; three launches in one are worth more than that while they are small."""
    if not unmeasured_on_cuda(name, input):
        return ""
    few = bool(pool) and input.numel() // max(1, input.shape[-3]) * weight.numel() < LARGE_ON_CUDA
    return "" if few else NATIVE_ON_CUDA
