"""Aligning a text-to-image pipeline with preferences: which ones, the pairs of a step, its loss, its update."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffdistill import processes
from diffdistill.alignment import (
    MaPOOutput,
    NoisedPairs,
    RobustMean,
    diffusion_dpo_loss,
    mapo_loss,
    noise_pairs,
    robust_mean,
)
from diffdistill.alignment.pairs import rows_of_pairs
from diffdistill.config.align import Align, DiffusionDPO
from diffdistill.data import batch_indices
from diffdistill.data.pairs import Pair, PairSet, Picture, picture
from diffdistill.machine import send
from diffdistill.matching.micro_batches import Metrics, blank_like, parts_of
from diffdistill.pipelines.text.adapter import Adapter
from diffdistill.pipelines.text.kept import Condition
from diffdistill.pipelines.text.lora import AdaptedNetwork, SharedWeights
from diffdistill.pipelines.text.moments import Moments, moments_of
from diffdistill.training.attention import Networks
from diffdistill.training.device import Device
from diffdistill.training.flat import Parts
from diffdistill.training.optim.in_backward import BackwardUpdater
from diffdistill.training.optim.updater import Updater
from diffdistill.training.sharded.plan import Plan, copying, home


class Errors(NamedTuple):
    """Denoising errors of some pairs, `(B,)` each: of the wanted images, of the others, and both of the reference."""

    win: Tensor
    lose: Tensor
    reference: tuple[Tensor, Tensor] | None


class AlignTask:
    """The network of a pipeline, or adapters on it, trained on pairs.

    A step encodes both images of its pairs, noises them alike and takes the method's loss, in parts of
    `micro_batch_size` pairs whose gradients add up: the draws of a step do not depend on its parts.
    """

    def __init__(self, config: Align, model: Adapter, pairs: PairSet, device: Device):
        self.config, self.model, self.pairs, self.device = config, model, pairs, device
        self.size = model.image_size = config.data.image_size or model.image_size
        self.moments: Moments | None = None
        # Without dropout, in training as in use: two networks are compared, or one with what it was.
        self.network = model.network.eval()
        self._place()
        torch.manual_seed(config.seed)
        self.adapted = self._adapted()
        if config.gradient_checkpointing:
            shared = [] if self.adapted is None else [self.adapted.shared.checkpointed]
            self.network.enable_gradient_checkpointing(*shared)
        self.reference = self._reference()
        trained = self.network.requires_grad_() if self.adapted is None else self.adapted.low_rank.to(device.name)
        role = "network" if self.adapted is None else "teacher"
        self.plan = Plan(config, device, {role: self.network, "reference": self.reference}, model.encoders)
        self.plan.shard()
        weights = list(trained.parameters())
        kind = BackwardUpdater if config.update_in_backward else Updater
        self.updater = kind("network", weights, config.optimizer, config.max_train_steps)
        # Only what is trained: the rest is in the folder that the run started from.
        self.parts: Parts = {"network": nn.ParameterList(weights), "optimizer": self.updater.optimizer}

    def keep_moments(self) -> None:
        """Let what the VAE makes of the pairs be kept on disk, as the settings say, before the first step."""
        self.moments = moments_of(self.config, self.model, self.pairs, self.size)

    def _place(self) -> None:
        """All parts but the network on the device; that one where it can wait until it is known how it fits."""
        self.model.place(self.device.name, self.device.dtype)
        nn.Module.to(self.network, home(self.config, self.device), torch.float32)

    def _adapted(self) -> AdaptedNetwork | None:
        """The network with adapters, in use wherever the model is; alpha = rank, and a Gaussian start of 1 / rank."""
        lora = self.config.lora
        if lora is None:
            return None
        nn.Module.to(self.network, self.device.dtype or torch.float32)  # frozen: half the memory at half precision
        adapted = SharedWeights(self.network).adapted(lora.rank, None, lora.targets, std=1 / lora.rank)
        adapted.shared.active = adapted.low_rank
        return adapted

    def _reference(self) -> Any:
        """The frozen copy that Diffusion-DPO compares with. Adapters need none: without them the network is it."""
        if not isinstance(self.config.method, DiffusionDPO) or self.config.lora is not None:
            return None
        return copying(self.config, self.device)(self.network).requires_grad_(False).eval()

    @contextmanager
    def _as_reference(self) -> Iterator[Any]:
        if self.adapted is None:
            yield self.reference
            return
        with self.adapted.shared.using(None):
            yield self.network

    def update(self, step: int) -> Metrics:
        count = self.config.train_batch_size
        chosen = batch_indices(len(self.pairs), count, self.config.seed, step)
        mine = processes.rows(count)
        pairs = [self.pairs.pairs[i] for i in chosen[mine].tolist()]
        flips = (torch.rand(count) < 0.5)[mine] if self.config.data.horizontal_flip else None
        parts = parts_of(len(pairs), self.config.micro_batch_size)
        if self.moments is None:
            pictures = pictures_of(pairs, self.size, flips)
            moments = self.model.moments(pictures)
        else:
            moments, pictures = self.moments.of(chosen[mine].tolist(), flips)
            moments = send(moments, self.model.device)
        # Drawn for the pairs of all processes, of which each takes its own.
        blank = blank_like(moments.chunk(2, dim=1)[0], 2 * count)
        latents = self.model.latents(moments, rows_of_pairs(torch.randn_like(blank), mine))
        u, noise = torch.rand(count, device=latents.device), torch.randn_like(blank[:count])
        noised = self.noised(latents, u=u[mine], noise=noise[mine])
        ties = torch.tensor([pair.tie for pair in pairs])
        self.updater.begin(step)
        metrics: Metrics = {}
        batch = [(noised.part(rows), self.conditions(pairs, pictures, rows)) for rows in parts]
        known, robust = self._ahead(batch, ties, parts)
        for some, rows, before in zip(batch, parts, known, strict=True):
            errors = self.errors(*some, before)
            out = self.loss(errors, ties[rows])
            share = len(out.margin) / count
            (share * out.loss if robust is None else robust.weights[rows] @ out.losses).backward()
            figures = {"loss": out.loss.detach(), "margin": out.margin.mean(), "win_rate": out.acc}
            figures |= {"loss/win": errors.win.detach().mean(), "loss/lose": errors.lose.detach().mean()}
            metrics = {name: metrics.get(name, 0.0) + share * value for name, value in figures.items()}
        metrics = processes.mean(metrics, count, count)
        return metrics | ({} if robust is None else {"loss": robust.loss}) | self.updater.step(step)

    def _ahead(
        self, batch: Sequence[tuple[NoisedPairs, Condition]], ties: Tensor, parts: Sequence[slice]
    ) -> tuple[Sequence["Errors | None"], RobustMean | None]:
        """The errors of all parts, and what each pair counts, where that depends on the whole batch's losses.

        In one part everywhere they have the graph of the pass that is wanted anyway; else they come of one without.
        """
        method, count = self.config.method, self.config.train_batch_size
        if not isinstance(method, DiffusionDPO) or method.robust_beta is None:
            return [None] * len(batch), None
        most_rows = -(-count // processes.size())  # whether there is one part is the same in all processes
        with torch.set_grad_enabled(len(parts_of(most_rows, self.config.micro_batch_size)) == 1):
            errors = [self.errors(*some) for some in batch]
        losses = [self.loss(found, ties[rows]).losses.detach() for found, rows in zip(errors, parts, strict=True)]
        return errors, robust_mean(torch.cat(losses), method.robust_beta, count)

    def errors(self, noised: NoisedPairs, cond: Condition, before: "Errors | None" = None) -> "Errors":
        """Of some pairs; before: what is known of them, the reference's, and all if there is a graph."""
        if before is not None and before.win.requires_grad:
            return before
        space = self.config.method.loss_space
        reference = None if before is None else before.reference
        if reference is None and isinstance(self.config.method, DiffusionDPO):
            reference = self._reference_losses(noised, cond)
        return Errors(*noised.losses(self.predict(self.network, noised, cond), space), reference)

    def loss(self, errors: "Errors", ties: Tensor) -> MaPOOutput:
        """The method's loss of some pairs."""
        method = self.config.method
        label_smoothing = method.label_smoothing if isinstance(method, DiffusionDPO) else 0.0
        smoothing = smoothing_of(ties, label_smoothing, errors.win.device)
        if not isinstance(method, DiffusionDPO):
            settings: dict[str, Any] = method.model_dump(exclude={"name", "loss_space"})
            return mapo_loss(errors.win, errors.lose, label_smoothing=smoothing, **settings)
        assert errors.reference is not None
        return diffusion_dpo_loss(
            errors.win, errors.lose, *errors.reference, beta=method.beta, variant=method.variant,
            label_smoothing=smoothing, divergence=method.divergence, log_ratio_scale=method.log_ratio_scale,
        )  # fmt: skip

    @torch.no_grad()
    def _reference_losses(self, noised: NoisedPairs, cond: Condition) -> tuple[Tensor, Tensor]:
        """Taken before the trained network's pass, so that what it needs is freed when that one's graph is kept."""
        with self._as_reference() as reference:
            return noised.losses(self.predict(reference, noised, cond), self.config.method.loss_space)

    def conditions(self, pairs: Sequence[Pair], pictures: Sequence[Picture], rows: slice) -> Condition:
        """Of some of the pairs, wanted images first."""
        half = len(pictures) // 2
        mine = [*pictures[:half][rows], *pictures[half:][rows]]
        return self.model.conditions([pair.text for pair in pairs[rows]] * 2, mine)

    def noised(self, latents: Tensor, **drawn: Any) -> NoisedPairs:
        """Both images of pairs, wanted ones first, as `noise_pairs` noises them at the shift of their size."""
        scheduler = self.model.scheduler
        shift = None if hasattr(scheduler, "alphas_cumprod") else self.model.shift()
        return noise_pairs(scheduler, *latents.chunk(2), shift=shift, **drawn)

    def predict(self, network: Any, noised: NoisedPairs, cond: Condition) -> Tensor:
        """As many channels as the images have: networks with learned variance append it as further ones."""
        with self.device.autocast():
            return self.model.predict(network, noised.x_t, noised.t, cond)[:, : noised.x_t.shape[1]]

    @torch.no_grad()
    def example(self) -> Tensor:
        """A pass of the network on the first pair, with noise of its own: to see which kernels run."""
        pair = self.pairs.pairs[0]
        pictures = pictures_of([pair], self.size)
        latents = self.model.latents(self.model.moments(pictures))
        noised = self.noised(latents, generator=torch.Generator().manual_seed(0))
        cond = self.model.conditions([pair.text] * 2, pictures)
        return self.predict(self.network, noised, cond)

    def networks(self) -> Networks:
        return {"network": (self.network, self.example)}

    def averaged(self) -> Adapter:
        """The model to look at and to keep: the trained one, as in both papers, and not an average."""
        return self.model


def smoothing_of(ties: Tensor, label_smoothing: float, device: torch.device | str) -> float | Tensor:
    """ties: on the CPU, where asking about them stops nothing."""
    return send(torch.where(ties, 0.5, label_smoothing), device) if bool(ties.any()) else label_smoothing


def pictures_of(pairs: Sequence[Pair], size: int, flips: Tensor | None = None) -> list[Picture]:
    """2B pictures, wanted ones first; a pair is mirrored whole, or its margin would show which image was."""
    pictures = [picture(encoded, size) for side in ("win", "lose") for encoded in (getattr(p, side) for p in pairs)]
    if flips is None:
        return pictures
    return [one.mirrored() if flip else one for one, flip in zip(pictures, flips.tolist() * 2, strict=True)]
