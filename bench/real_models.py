"""Models as other people write them, in torch.nn alone: what ``torchsmith.convert`` is tested and timed on.

Layer tables and names of layers follow the papers and their usual implementations. Sizes of the classifiers are arguments, so
that small pictures will do.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

__all__ = ["CharRNN", "GoogLeNet", "LeNet5", "MobileNetV2", "PlainMLP", "ResNet18", "Tagger", "VGG16"]


def _for_relu(model: nn.Module) -> None:
    """Initial weights that keep the size of activations through ReLUs (He et al. 2015, "Delving Deep into Rectifiers")."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class LeNet5(nn.Module):
    """LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition", as it is taught today: with ReLU and max
    pooling, called as functions. [N, 1, 28, 28] to [N, classes]."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, with batch normalisation."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            shortcut = self.downsample(x)
        out += shortcut
        return self.relu(out)


class ResNet18(nn.Module):
    """He et al. 2016, "Deep Residual Learning for Image Recognition", table 1. [N, 3, H, W] to [N, classes]."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256, 1))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, 2), BasicBlock(512, 512, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, classes)
        _for_relu(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class VGG16(nn.Module):
    """Simonyan and Zisserman 2015, "Very Deep Convolutional Networks", column D. [N, 3, H, W] to [N, classes].

    Args:
        pooled: side of the picture that the classifier sees; 7 in the paper.
        hidden: units of its layers; 4096 in the paper.
        dropout: between them.
    """

    TABLE = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")

    def __init__(self, classes: int = 10, pooled: int = 7, hidden: int = 4096, dropout: float = 0.5) -> None:
        super().__init__()
        layers, channels = [], 3
        for out in self.TABLE:
            if out == "M":
                layers.append(nn.MaxPool2d(2, 2))
            else:
                layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(inplace=True)]
                channels = out
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(pooled)
        self.classifier = nn.Sequential(
            nn.Linear(512 * pooled * pooled, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )
        _for_relu(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class ConvNormActivation(nn.Sequential):
    """Convolution, batch normalisation, ReLU6."""

    def __init__(self, channels: int, out: int, window: int = 3, stride: int = 1, groups: int = 1) -> None:
        convolution = nn.Conv2d(channels, out, window, stride, (window - 1) // 2, groups=groups, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(out), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """1x1 to more channels, 3x3 depthwise, 1x1 to few; with a shortcut where the shape stays."""

    def __init__(self, channels: int, out: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = channels * expand
        self.use_res_connect = stride == 1 and channels == out
        layers = [ConvNormActivation(channels, inner, 1)] if expand != 1 else []
        layers += [
            ConvNormActivation(inner, inner, stride=stride, groups=inner),
            nn.Conv2d(inner, out, 1, bias=False),
            nn.BatchNorm2d(out),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNetV2(nn.Module):
    """Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", table 2. [N, 3, H, W] to [N, classes]."""

    #: expansion, channels, blocks, stride of the first
    TABLE = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, classes: int = 10, dropout: float = 0.2) -> None:
        super().__init__()
        layers, channels = [ConvNormActivation(3, 32, stride=2)], 32
        for expand, out, count, stride in self.TABLE:
            for i in range(count):
                layers.append(InvertedResidual(channels, out, stride if i == 0 else 1, expand))
                channels = out
        layers.append(ConvNormActivation(channels, 1280, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(1280, classes))
        _for_relu(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.classifier(torch.flatten(x, 1))


class ConvReLU(nn.Module):
    """A convolution and a call of ReLU."""

    def __init__(self, channels: int, out: int, window: int, **keywords: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, window, **keywords)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x), inplace=True)


class Inception(nn.Module):
    """Four branches side by side: 1x1; 1x1 and 3x3; 1x1 and 5x5; max pool and 1x1."""

    def __init__(self, channels: int, one: int, three: tuple[int, int], five: tuple[int, int], pool: int) -> None:
        super().__init__()
        self.branch1 = ConvReLU(channels, one, 1)
        self.branch2 = nn.Sequential(ConvReLU(channels, three[0], 1), ConvReLU(three[0], three[1], 3, padding=1))
        self.branch3 = nn.Sequential(ConvReLU(channels, five[0], 1), ConvReLU(five[0], five[1], 5, padding=2))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), ConvReLU(channels, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class GoogLeNet(nn.Module):
    """Szegedy et al. 2015, "Going Deeper with Convolutions", table 1; without local response normalisation and the auxiliary
    classifiers. [N, 3, H, W] to [N, classes]."""

    def __init__(self, classes: int = 10, dropout: float = 0.4) -> None:
        super().__init__()
        self.conv1 = ConvReLU(3, 64, 7, stride=2, padding=3)
        self.maxpool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = ConvReLU(64, 64, 1)
        self.conv3 = ConvReLU(64, 192, 3, padding=1)
        self.maxpool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception3a = Inception(192, 64, (96, 128), (16, 32), 32)
        self.inception3b = Inception(256, 128, (128, 192), (32, 96), 64)
        self.maxpool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception4a = Inception(480, 192, (96, 208), (16, 48), 64)
        self.inception4b = Inception(512, 160, (112, 224), (24, 64), 64)
        self.inception4c = Inception(512, 128, (128, 256), (24, 64), 64)
        self.inception4d = Inception(512, 112, (144, 288), (32, 64), 64)
        self.inception4e = Inception(528, 256, (160, 320), (32, 128), 128)
        self.maxpool4 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception5a = Inception(832, 256, (160, 320), (32, 128), 128)
        self.inception5b = Inception(832, 384, (192, 384), (48, 128), 128)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(1024, classes)
        _for_relu(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool2(self.conv3(self.conv2(self.maxpool1(self.conv1(x)))))
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        x = self.inception4c(self.inception4b(self.inception4a(x)))
        x = self.maxpool4(self.inception4e(self.inception4d(x)))
        x = F.adaptive_avg_pool2d(self.inception5b(self.inception5a(x)), (1, 1))
        return self.fc(self.dropout(torch.flatten(x, 1)))


class PlainMLP(nn.Sequential):
    """Linear layers with ReLU between: [N, 784] to [N, classes]."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__(
            nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(),
            nn.Linear(128, classes),
        )  # fmt: skip


class CharRNN(nn.Module):
    """The next character: embedding, two layers of RNN, linear. Characters [N, T], integer, to logits [N, characters, T]."""

    def __init__(self, characters: int = 65, hidden: int = 128, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, hidden)
        self.rnn = nn.RNN(hidden, hidden, 2, batch_first=True, dropout=dropout)
        self.fc = nn.Linear(hidden, characters)

    def forward(self, characters: Tensor) -> Tensor:
        states, _ = self.rnn(self.embedding(characters))
        return self.fc(states).transpose(1, 2)


class Tagger(nn.Module):
    """A tag for each word: embedding, bidirectional GRU over packed sentences, linear.

    Words [N, T], integer, and the lengths [N] of the sentences, to logits [N, tags, T]; what lies behind a sentence's end
    has no meaning.
    """

    def __init__(self, words: int = 1000, tags: int = 12, hidden: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * hidden, tags)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(words), lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=words.shape[1])
        return self.fc(states).transpose(1, 2)
