"""The official code's networks for CIFAR, and ResNet-50 for ImageNet, in PyTorch."""

from torch import nn

_PLANS = {
    11: (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    13: (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    16: (64, 64, "M", 128, 128, "M", *(256,) * 3, "M", *(512,) * 3, "M", *(512,) * 3, "M"),
    19: (64, 64, "M", 128, 128, "M", *(256,) * 4, "M", *(512,) * 4, "M", *(512,) * 4, "M"),
}


def create(name: str, num_classes: int) -> nn.Module:
    """Returns the PyTorch original of one of our networks for CIFAR, or of "resnet50"."""
    if name == "resnet50":
        return ResNet50(num_classes)
    family = name.removesuffix("_cifar")
    if family == "alexnet":
        return FeaturesThenLinear(_alexnet(), 256, num_classes)
    if family.startswith("vgg"):
        depth, _, norm = family.removeprefix("vgg").partition("_")
        return FeaturesThenLinear(_vgg(int(depth), norm == "bn"), 512, num_classes)
    return ResNet(int(family.removeprefix("resnet")), num_classes)


class FeaturesThenLinear(nn.Module):
    def __init__(self, features: nn.Sequential, width: int, num_classes: int):
        super().__init__()
        self.features = features
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, images):
        return self.classifier(self.features(images).flatten(1))


def _alexnet() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, 4, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    )


def _vgg(depth: int, norm: bool) -> nn.Sequential:
    layers, width = [], 3
    for step in _PLANS[depth]:
        if step == "M":
            layers.append(nn.MaxPool2d(2))
            continue
        layers.append(nn.Conv2d(width, step, 3, padding=1))
        layers += [nn.BatchNorm2d(step)] * norm
        layers.append(nn.ReLU())
        width = step
    return nn.Sequential(*layers)


class Block(nn.Module):
    """A residual block of the convolutions (kernel size, width, stride)."""

    def __init__(self, width: int, convolutions: list[tuple[int, int, int]]):
        super().__init__()
        widths = [width, *(out for _, out, _ in convolutions)]
        self.depth = len(convolutions)
        for number, (size, out, stride) in enumerate(convolutions, start=1):
            conv = nn.Conv2d(widths[number - 1], out, size, stride, size // 2, bias=False)
            setattr(self, f"conv{number}", conv)
            setattr(self, f"bn{number}", nn.BatchNorm2d(out))
        stride = max(stride for _, _, stride in convolutions)
        self.downsample = None
        if stride > 1 or width != widths[-1]:
            projection = nn.Conv2d(width, widths[-1], 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(widths[-1]))

    def forward(self, images):
        features = images
        for number in range(1, self.depth + 1):
            features = getattr(self, f"conv{number}")(features)
            features = getattr(self, f"bn{number}")(features)
            features = features.relu() if number < self.depth else features
        shortcut = images if self.downsample is None else self.downsample(images)
        return (features + shortcut).relu()


class ResNet(nn.Module):
    """Three stages of (depth - 2) / 6 blocks, whatever the kind of block; bottlenecks from 44."""

    def __init__(self, depth: int, num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        width = 16
        for stage, inner in ((1, 16), (2, 32), (3, 64)):
            blocks = []
            for number in range((depth - 2) // 6):
                stride = 2 if stage > 1 and number == 0 else 1
                if depth >= 44:
                    convolutions = [(1, inner, 1), (3, inner, stride), (1, 4 * inner, 1)]
                else:
                    convolutions = [(3, inner, stride), (3, inner, 1)]
                blocks.append(Block(width, convolutions))
                width = convolutions[-1][1]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(width, num_classes)

    def forward(self, images):
        features = self.bn1(self.conv1(images)).relu()
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.fc(features.mean((2, 3)))


class ResNet50(nn.Module):
    """torchvision's ResNet-50, without torchvision."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        width, stages = 64, []
        for stage, num_blocks in enumerate((3, 4, 6, 3)):
            for number in range(num_blocks):
                inner, stride = 64 * 2**stage, 2 if stage > 0 and number == 0 else 1
                stages.append(Block(width, [(1, inner, 1), (3, inner, stride), (1, 4 * inner, 1)]))
                width = 4 * inner
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, images):
        features = self.maxpool(self.bn1(self.conv1(images)).relu())
        return self.fc(self.stages(features).mean((2, 3)))
