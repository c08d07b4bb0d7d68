"""What tests of text distillation share: tiny teachers of every kind, data for them, and runs on both."""

from tiny_text import captioned_folder, flux, pixart, png, stable_diffusion, stable_diffusion_3, stable_diffusion_xl

from diffdistill import Denoiser
from diffdistill.config.schema import Distill
from diffdistill.pipelines.text.data import text_data
from diffdistill.training.device import Device
from diffdistill.training.tasks.distill import student_task

MAKERS = {
    "sd": stable_diffusion, "sdxl": stable_diffusion_xl, "sd3": stable_diffusion_3, "flux": flux, "pixart": pixart,
}  # fmt: skip
LORA = {"student": {"steps": 2, "lora": {"rank": 2}}, "critic": {"lora": {"rank": 3, "alpha": 6.0}}}


def world(made):
    """Teachers, captioned images, images without captions, prompts and a reward, in the folder `made`."""
    for name, make in MAKERS.items():
        make(made / name)
    captioned_folder(made / "images")
    (made / "plain").mkdir()
    (made / "plain" / "0.png").write_bytes(png(60, (16, 16)))
    (made / "prompts.txt").write_text("".join(f"thing {i}\n" for i in range(8)))
    (made / "bright.py").write_text(
        "seen = []\ndef bright(images, prompts):\n    seen.append((images.detach(), prompts))\n"
        "    return images.flatten(1).mean(1)\n"
    )
    return made


def settings(folder, kind="sd", method="diff_instruct", images=False, **more):
    data: dict = {"path": str(folder / "images")} if images else {"prompts": str(folder / "prompts.txt")}
    chosen = {"name": method, "guidance_scale": 2.0} | more.pop("options", {})
    if not images:
        chosen = {"adversarial": None} | chosen
    common = {
        "output_dir": "unused", "max_train_steps": 3, "train_batch_size": 2, "log_every": 1, "sample_every": 2,
        "checkpoint_every": 1, "keep_checkpoints": 10, "evaluation": {"at_end": False}, "data": data,
    }  # fmt: skip
    data |= {"image_size": 16, "keep": "memory", "prompt_disk_gb": 0.0}  # nothing goes to the user's own cache
    if kind in ("sd3", "flux"):
        common |= {"level": {"law": "shifted"}}
    return Distill(**common | more, teacher=str(folder / kind), method=chosen)


def task(config):
    teacher = Denoiser.from_pretrained(config.teacher)
    return student_task(config, teacher, text_data(config, teacher), Device("no"))
