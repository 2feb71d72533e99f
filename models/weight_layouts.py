"""The names that programs give to the tensors of a DenseNet.

All of them compute the same from tensors of the same shapes; only their names for the modules differ.
"""

import re
from functools import cached_property
from typing import NamedTuple

# Numbers in a name. {block} and {layer} count from 1, {index} is a layer counted from 0, {next} the block after a
# transition, and {part} tells the two norms or convolutions of a bottleneck layer apart.
NUMBERS = {
    "block": r"(?P<block>[1-9]\d{0,3})",
    "layer": r"(?P<layer>[1-9]\d{0,3})",
    "index": r"(?P<index>0|[1-9]\d{0,3})",
    "next": r"(?P<next>[1-9]\d{0,3})",
    "part": r"(?P<part>[12])",
}
TENSORS = "weight|bias|running_mean|running_var|num_batches_tracked"


class Names(NamedTuple):
    """A name for each module of a DenseNet that has tensors.

    Attributes:
        conv0: The first convolution.
        norm0: The norm layer after it in networks for ImageNet.
        norm: A norm layer in a dense layer.
        conv: A convolution in a dense layer.
        transition_norm: The norm layer of a transition.
        transition_conv: The convolution of a transition.
        norm_final: The norm layer after the last block.
        classifier: The linear layer.
    """

    conv0: str
    norm0: str
    norm: str
    conv: str
    transition_norm: str
    transition_conv: str
    norm_final: str
    classifier: str


OWN = Names(
    conv0="features.conv0",
    norm0="features.norm0",
    norm="features.denseblock{block}.denselayer{layer}.norm{part}",
    conv="features.denseblock{block}.denselayer{layer}.conv{part}",
    transition_norm="features.transition{block}.norm",
    transition_conv="features.transition{block}.conv",
    norm_final="features.norm_final",
    classifier="classifier",
)


class Layout:
    """The names that a program uses, and what they mean.

    Args:
        title: The program, for people.
        names: A regular expression for each name, with numbers as in `NUMBERS`.
    """

    def __init__(self, title: str, names: Names):
        self.title = title
        self.names = names

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], str]]:
        """A pattern for each name with the tensor after it, and this program's name."""
        return [
            (re.compile(rf"(?P<prefix>(?:.*?\.)??){name.format_map(NUMBERS)}\.(?P<tensor>{TENSORS})"), own)
            for name, own in zip(self.names, OWN, strict=True)
        ]

    def read(self, name: str) -> tuple[str, str] | None:
        """Split the name of a tensor into a prefix, which is empty or ends with a dot, and this program's name for it.

        Returns:
            Both, the prefix as short as possible, or None if the name has no meaning here.
        """
        matches = ((pattern.fullmatch(name), own) for pattern, own in self._patterns)
        found = [(match, own) for match, own in matches if match]
        if not found:
            return None
        match, own = min(found, key=lambda pair: len(pair[0]["prefix"]))
        return match["prefix"], f"{own.format(**_numbers(match))}.{match['tensor']}"


def _numbers(match: re.Match[str]) -> dict[str, int]:
    """The numbers in a name, counted as in this program. A layer of one convolution need not number its parts."""
    given = {name: int(text) for name, text in match.groupdict().items() if name in NUMBERS and text}
    block, layer = given.get("next", 0) - 1, given.get("index", 0) + 1
    return {"block": block, "layer": layer, "part": 1} | given


_TORCHVISION = Names(
    conv0=r"features\.conv0",
    norm0=r"features\.norm0",
    norm=r"features\.denseblock{block}\.denselayer{layer}\.norm\.?{part}",
    conv=r"features\.denseblock{block}\.denselayer{layer}\.conv\.?{part}",
    transition_norm=r"features\.transition{block}\.norm",
    transition_conv=r"features\.transition{block}\.conv",
    norm_final=r"features\.norm(?:_final|5)",
    classifier=r"classifier",
)
_NEVER = r"(?!)"  # matches nothing: there is no such module

LAYOUTS = (
    # efficient_densenet_pytorch and timm too. Files of old versions of torchvision have dots, as in norm.1.
    Layout("this program or torchvision", _TORCHVISION),
    Layout(
        "MONAI",
        _TORCHVISION._replace(
            norm=r"features\.denseblock{block}\.denselayer{layer}\.layers\.norm{part}",
            conv=r"features\.denseblock{block}\.denselayer{layer}\.layers\.conv{part}",
            norm_final=r"features\.norm5",
            classifier=r"class_layers\.out",
        ),
    ),
    Layout(
        "andreasveit/densenet-pytorch",
        Names(
            conv0=r"conv1",
            norm0=_NEVER,
            norm=r"block{block}\.layer\.{index}\.bn{part}",
            conv=r"block{block}\.layer\.{index}\.conv{part}",
            transition_norm=r"trans{block}\.bn1",
            transition_conv=r"trans{block}\.conv1",
            norm_final=r"bn1",
            classifier=r"fc",
        ),
    ),
    Layout(
        "pytorchcv",
        Names(
            conv0=r"features\.init_block(?:\.conv)?",
            norm0=r"features\.init_block\.bn",
            norm=r"features\.stage{block}\.unit{layer}\.conv{part}?\.bn",
            conv=r"features\.stage{block}\.unit{layer}\.conv{part}?\.conv",
            transition_norm=r"features\.stage{next}\.trans(?P=next)\.conv\.bn",
            transition_conv=r"features\.stage{next}\.trans(?P=next)\.conv\.conv",
            norm_final=r"features\.post_activ\.bn",
            classifier=r"output",
        ),
    ),
)
