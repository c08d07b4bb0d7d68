"""ComfyUI's own loaders and its `lcm` sampler over files of ours: `python comfyui_draws.py JOB`, and no server.

JOB is JSON: `comfyui` (folder of a checkout), `denoiser` and `lora` (files; lora may be null), `given` (safetensors:
noise, cond, and pooled where there is one), `sigmas`, `guidance` (null: none), `image` (height and width that the
network is told, or null) and `out`, where latents are written as the network has them.
"""

import json
import sys
from importlib.machinery import ModuleSpec
from unittest.mock import MagicMock

import torch
import transformers.utils.import_utils as installed
from safetensors.torch import load_file, save_file

with open(sys.argv[1]) as file:
    JOB = json.load(file)
installed.is_torchvision_available()  # asked before its place is taken
for name in ("", ".transforms", ".transforms.functional", ".ops"):
    # Some of ComfyUI's modules import it, nothing that is called here uses it, and it is not in every environment.
    sys.modules["torchvision" + name] = MagicMock(__spec__=ModuleSpec("torchvision", None))
sys.path.insert(0, JOB["comfyui"])
sys.argv = ["main.py", "--cpu", "--force-fp32", "--use-pytorch-cross-attention"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402


def main() -> None:
    given = load_file(JOB["given"])
    options = {"dtype": torch.float32}
    if "first_stage_model.decoder.conv_in.weight" in comfy.utils.load_torch_file(JOB["denoiser"]):
        model = comfy.sd.load_checkpoint_guess_config(
            JOB["denoiser"], output_vae=False, output_clip=False, model_options=options
        )[0]
    else:
        model = comfy.sd.load_diffusion_model(JOB["denoiser"], model_options=options)
    patches = None
    if JOB["lora"] is not None:
        lora = comfy.utils.load_torch_file(JOB["lora"])
        model, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
        patches = len(model.patches)
    more = {"pooled_output": given["pooled"]} if "pooled" in given else {}
    if JOB["guidance"] is not None:
        more["guidance"] = JOB["guidance"]
    if JOB["image"] is not None:
        height, width = JOB["image"]
        more |= {"height": height, "width": width, "target_height": height, "target_width": width}
    cond = [[given["cond"], more]]
    latents = comfy.sample.sample_custom(
        model, given["noise"], 1.0, comfy.samplers.sampler_object("lcm"), torch.tensor(JOB["sigmas"]), cond, cond,
        torch.zeros_like(given["noise"]), disable_pbar=True, seed=0,
    )  # fmt: skip
    save_file({"latents": model.model.latent_format.process_in(latents).contiguous()}, JOB["out"])
    print(json.dumps({"class": type(model.model).__name__, "patches": patches}))


if __name__ == "__main__":
    main()
