"""The course's worked matrices: a convolution, with padding, with stride, a max pooling, and a shape."""

import torch

from torchsmith.course.row import ExampleRow, Worked

INPUT = [[3, 4, 6, 5, 7], [2, 4, 6, 8, 2], [1, 6, 7, 8, 4], [9, 7, 4, 6, 2], [3, 7, 5, 4, 1]]
KERNEL = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
POOLED = [[3, 4, 6, 5], [2, 4, 6, 8], [1, 6, 7, 8], [9, 7, 4, 6]]


def image(rows):
    return torch.tensor(rows, dtype=torch.float32)[None, None]


def matrix(tensor):
    """Exact: integers, and an error where a number is none."""
    values = tensor[0, 0]
    if not torch.equal(values, values.round()):
        raise ArithmeticError(f"expected whole numbers, got {values.tolist()}")
    return values.long().tolist()


def work(functions, settings):
    x, kernel = image(INPUT), image(KERNEL)
    many = functions.conv2d(torch.randn(1, 5, 100, 100), torch.randn(10, 5, 3, 3))
    return Worked(
        {
            "conv": matrix(functions.conv2d(x, kernel)),
            "padding 1": matrix(functions.conv2d(x, kernel, padding=1)),
            "stride 2": matrix(functions.conv2d(x, kernel, stride=2)),
            "max pool 2": matrix(functions.max_pool2d(image(POOLED), 2)),
            "shape of 5->10 k3 on (1, 5, 100, 100)": str(tuple(many.shape)),
        }
    )


ROW = ExampleRow(
    name="conv-examples",
    lesson=10,
    summary="worked matrices: conv 3x3, with padding 1, with stride 2; max pool 2; a shape",
    data="the course's numbers",
    goal="the matrices, exactly",
    reached="exact",
    embedded="the course's numbers",
    work=work,
    course={
        "conv": [[211, 295, 262], [259, 282, 214], [251, 253, 169]],
        "padding 1": [
            [91, 168, 224, 215, 127],
            [114, 211, 295, 262, 149],
            [192, 259, 282, 214, 122],
            [194, 251, 253, 169, 86],
            [96, 112, 110, 68, 31],
        ],
        "stride 2": [[211, 262], [251, 169]],
        "max pool 2": [[4, 8], [9, 8]],
        "shape of 5->10 k3 on (1, 5, 100, 100)": "(1, 10, 98, 98)",
    },
)
