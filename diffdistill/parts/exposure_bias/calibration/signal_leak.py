"""`diffdistill calibrate --fit signal-leak`: the law of a start with the brightness of data, and what it changes.

The law is fitted to images as the network knows them, pixels or latents, and written at once. Then, for every sampler
and number of steps, images are drawn without it and with it, from the same noise, and their brightness is measured
against the data's (`evaluate --metrics brightness`).
"""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from diffdistill import processes
from diffdistill.data import ImageSet, load_images
from diffdistill.data.pixels import to_model_range
from diffdistill.data.prompts import spread
from diffdistill.data.rows import Coloured
from diffdistill.denoiser import Denoiser
from diffdistill.devices import pick_device
from diffdistill.evaluation.evaluator import Evaluator
from diffdistill.outputs import check_output
from diffdistill.parts.exposure_bias.calibration.measure import check_fit
from diffdistill.pipelines.folder import locate, weights_digest
from diffdistill.request import SamplingRequest
from diffdistill.sampling.generate import run_shared
from diffdistill.sampling.leak_file import KIND, LeakFile, check_takes_leak
from diffdistill.sampling.plan import Plan, plan_sampling
from diffdistill.sampling.signal_leak import LeakFit, SignalLeak, spread_kept

MOST = 4096  # images that a leak is fitted to: its spread is then known to 1.1 %
FEW = 1000
AT_ONCE = 64


def fit_signal_leak(args: Namespace) -> int:
    """Fit, write `--out`, measure and write the figures into it too. Raises the errors of errors.py."""
    out = Path(args.out)
    model = Denoiser.from_pretrained(args.model, pick_device(args.device))
    check_takes_leak(model)
    data = data_for(model, args)
    weights = weights_digest(locate(args.model))
    known = {"name": data.name, "split": args.split, "fingerprint": data.fingerprint}
    about = {**known, "num_images": min(len(data), MOST)}

    def ours(content: Any) -> bool:
        return (content["kind"], content["weights_sha256"], content["data"]) == (KIND, weights, about)

    processes.lead(lambda: check_output(out, "--out", ours))
    processes.agree({"model": weights, "data": data.fingerprint, "flags": vars(args)})
    plans = plans_for(model, data, args)
    leak = LeakFile(fit_to(model, data), args.model, weights, about, source=str(out))
    processes.lead(partial(leak.save, out))
    print(_first_line(model, leak.law, about["num_images"]), flush=True)
    if not plans:
        print(f"note: {data.name} has no captions, so what the leak changes is not measured")
    evaluator = Evaluator(data, None, ("brightness",), floor=False) if plans else None
    for plan in plans:
        assert evaluator is not None
        run = {"sampler": plan.sampler, "steps": plan.steps}
        run |= {name: brightness(model, one, evaluator, args) for name, one in ways(plan, leak)}
        leak = replace(leak, runs=(*leak.runs, run))
        processes.lead(partial(leak.save, out))
        print(_line(run), flush=True)
    print(f"{out}: a signal leak of {'x'.join(map(str, leak.law.shape))}")
    return 0


def data_for(model: Denoiser, args: Namespace) -> ImageSet:
    """Images of the model's size, cut to it for one that draws texts; DataError for others."""
    if not model.draws_texts:
        data = load_images(args.data, split=args.split, keep="auto")
        processes.lead(lambda: check_fit(model, data))
        return data
    _, height, width = model.picture_shape
    data = load_images(args.data, split=args.split, image_size=height if height == width else None, keep="auto")
    if data.images.shape[1] == 1:  # a VAE takes colour
        data = replace(data, images=Coloured(data.images))
    processes.lead(lambda: check_fit(model, data))
    return data


def plans_for(model: Denoiser, data: ImageSet, args: Namespace) -> list[Plan]:
    """How images are drawn to see what the leak changes; none of a model that draws texts where there are none."""
    if model.draws_texts and data.texts is None:
        return []
    prompts = spread(data.texts, args.num_images) if model.draws_texts and data.texts is not None else None
    request = SamplingRequest(prompts=prompts)
    return [plan_sampling(model, request, sampler=name, steps=steps) for name in args.sampler for steps in args.steps]


def fit_to(model: Denoiser, data: ImageSet) -> SignalLeak:
    """The law of at most MOST images, evenly spaced, as the network knows them; processes encode them in turn."""
    places = spread(range(len(data)), MOST)
    parts = (places[i : i + AT_ONCE] for i in range(0, len(places), AT_ONCE))
    fit = LeakFit()
    for found in processes.in_turn(lambda part: {"x": model.encode(to_model_range(data.images[part]))}, parts):
        fit.add(found["x"])
    return fit.law()


def ways(plan: Plan, leak: LeakFile) -> Iterator[tuple[str, Plan]]:
    yield "without", plan
    yield "with", replace(plan, leak=leak)


def brightness(model: Denoiser, plan: Plan, evaluator: Evaluator, args: Namespace) -> dict[str, Any]:
    """The figures of images of a plan, with their standard errors."""
    batches = run_shared(model, plan, num_images=args.num_images, seed=args.seed, batch_size=args.batch_size)
    return evaluator(batches)["metrics"]["brightness"]


def _first_line(model: Denoiser, law: SignalLeak, count: int) -> str:
    kept = spread_kept(law.spread, 1 / (1 + model.sigma_max**2))
    few = f"; {count} are few, give {FEW} or more" if count < FEW else ""
    return (
        f"fitted to {count} images{few}: their lowest wave has the spread {law.spread:.3g}, of which a start at level "
        f"{model.sigma_max:.4g} without signal keeps {kept:.3f} at best"
    )


def _line(run: dict[str, Any]) -> str:
    def told(name: str) -> str:
        one, other = (run[way] for way in ("without", "with"))
        return f"{one[name]:.3f} +- {one['standard_errors'][name]:.3f} -> {other[name]:.3f}"

    spread_, shift = told("brightness_spread"), told("brightness_shift")
    return f"{run['sampler']} {run['steps']}: spread of brightness {spread_}, shift {shift}"
