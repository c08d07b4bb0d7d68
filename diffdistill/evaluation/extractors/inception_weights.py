"""Inception v3 from files that hold its weights only: `.pth` of pytorch-fid and torch-fidelity, safetensors.

Names and shapes are those of PyTorch's Inception v3 without its side classifier. What they leave open, the graph and
the range of the pixels, is in the metadata of a safetensors file, `graph` and `pixels`; without them the graph
is the one of 2015, known by its 1,008 classes.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from diffdistill.errors import CheckpointError
from diffdistill.evaluation.extractors.base import large_batch
from diffdistill.evaluation.extractors.inception import ID, Inception
from diffdistill.evaluation.extractors.inception_net import CHANNELS, InceptionNet
from diffdistill.files import sha256
from diffdistill.pickle_reader.source import read_safetensors, read_tensors

FILES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")  # one file, two names
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
CLASSES_2015 = 1008
EPSILON = 1e-3  # of the normalisation, in every Inception v3
NORMALISATION = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Graph:
    """What names and shapes leave open.

    largest: see `InceptionNet`. offset, scale: a grey value becomes (value - offset) / scale. biased: whether class
    probabilities take the bias of the last layer.
    """

    name: str
    largest: bool
    offset: float
    scale: float
    biased: bool


# The Inception Score of 1606.03498 leaves out the bias of the last layer.
GRAPH_2015 = Graph("2015", True, 128, 128, False)
PIXELS = {"-1..1": (127.5, 127.5), "0..1": (0.0, 255.0)}


class InceptionWeights(Inception):
    """Named as the network of published FIDs only where the file is the published one."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.sha256 = sha256(path)
        tensors, metadata = read_weights(path)
        tensors = checked(tensors, path)
        self.graph = find_graph(tensors, metadata, path)
        self.id = ID if self.sha256 == SHA256 else f"inception_v3_{self.graph.name}:{path.stem}"
        self.net, self.output = build(tensors, self.graph)
        self.net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device, self.batch_size = device, large_batch(device)

    def embed(self, images: Tensor) -> Tensor:
        return self.net((images - self.graph.offset) / self.graph.scale)

    @torch.no_grad()
    def probabilities(self, features: Tensor) -> Tensor | None:
        """Of the file's last layer `fc`, where it has one."""
        if self.output is None:
            return None
        bias = self.output.bias.double() if self.graph.biased else None
        return F.linear(features.double(), self.output.weight.double(), bias).softmax(1)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name and the metadata of the file, running nothing of what is in it."""
    if path.suffix != ".safetensors":
        return read_tensors(path), {}
    tensors = read_safetensors(path)
    try:
        with safe_open(path, "pt") as file:
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{path}' is no readable safetensors file ({error}); fetch it again") from error


def find_graph(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> Graph:
    """The graph that the metadata name; without, the one of 2015 if there are its 1,008 classes."""
    name, classes = metadata.get("graph", "2015"), len(tensors["fc.weight"]) if "fc.weight" in tensors else 0
    if name == "keras":
        if metadata.get("pixels") not in PIXELS:
            raise CheckpointError(
                f"'{path}' has metadata without the range of the pixels (pixels: {metadata.get('pixels')}); "
                f"save it with one of {', '.join(PIXELS)}"
            )
        return Graph("keras", False, *PIXELS[metadata["pixels"]], True)
    if name != "2015":
        raise CheckpointError(f"'{path}' has metadata with the graph '{name[:60]}'; graphs are 2015 and keras")
    if classes != CLASSES_2015:
        raise CheckpointError(
            f"'{path}' has {classes or 'no'} classes (fc), and the Inception of published FIDs has {CLASSES_2015}; "
            "another Inception v3 goes into a safetensors file with metadata graph and pixels"
        )
    return GRAPH_2015


def empty_net(largest: bool) -> tuple[InceptionNet, dict[str, nn.Conv2d]]:
    """A network without memory, and its convolutions by name."""
    with torch.device("meta"):
        net = InceptionNet(largest=largest)
    return net, {name: module for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}


def checked(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The weights, each there with its shape and no other; CheckpointError for the first that is not."""
    given = {name: tensor for name, tensor in tensors.items() if not name.endswith(".num_batches_tracked")}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in empty_net(False)[1].items():
        shapes[f"{name}.conv.weight"] = tuple(module.weight.shape)
        shapes |= {f"{name}.bn.{part}": (module.out_channels,) for part in NORMALISATION}
    if "fc.weight" in given:
        classes = given["fc.weight"].shape[:1].numel()
        shapes |= {"fc.weight": (classes, CHANNELS), "fc.bias": (classes,)}
    wrong = [f"{name} is missing" for name in shapes if name not in given]
    wrong += [f"{name[:80]} is unknown" for name in given if name not in shapes]
    wrong = wrong or [
        f"{name} is {tensor.dtype} {tuple(tensor.shape)} and not floats {shapes[name]}"
        for name, tensor in given.items()
        if tuple(tensor.shape) != shapes[name] or not tensor.is_floating_point()
    ]
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"'{path}' is not Inception v3 by PyTorch's names, without a side classifier ({wrong[0]}{more}); give "
            f"{FILES[0]}, a safetensors file of the same names, or TorchScript"
        )
    return given


def build(given: dict[str, Tensor], graph: Graph) -> tuple[InceptionNet, nn.Linear | None]:
    """Network and last layer with these weights."""
    net, convolutions = empty_net(graph.largest)
    state = {}
    for name in convolutions:
        state[f"{name}.weight"], state[f"{name}.bias"] = folded(given, name)
    net.load_state_dict(state, assign=True)
    net.eval().requires_grad_(False)
    if "fc.weight" not in given:
        return net, None
    output = nn.Linear(CHANNELS, len(given["fc.weight"])).requires_grad_(False)
    output.load_state_dict({name: given[f"fc.{name}"].float() for name in ("weight", "bias")})
    return net, output


def folded(tensors: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution that also normalises: w g / s and b - m g / s, s = sqrt(v + 1e-3)."""
    weight = tensors[f"{name}.conv.weight"].double()
    gain, shift, mean, variance = (tensors[f"{name}.bn.{part}"].double() for part in NORMALISATION)
    factor = gain / (variance + EPSILON).sqrt()
    return (weight * factor[:, None, None, None]).float(), (shift - mean * factor).float()
