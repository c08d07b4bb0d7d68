"""What `doctor` runs in interpreters of their own: each prints one line of JSON, or breaks where the package does."""

TORCH = """
import json, torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
cuda = torch.cuda.is_available()
facts = {"cuda": torch.cuda.get_device_name(0) if cuda else None, "build": torch.version.cuda or torch.version.hip}
facts["threads"] = torch.get_num_threads()
of_cpu = getattr(torch.cpu, "get_capabilities", dict)()
facts["bf16"] = bool(torch.cuda.is_bf16_supported() if cuda else of_cpu.get("amx_bf16"))
where = {"device": "cuda", "dtype": torch.float16} if cuda else {}
q, k, v = torch.randn(3, 1, 2, 64, 32, **where)
exact = ((q.double() @ k.double().mT) / 32**0.5).softmax(-1) @ v.double()
facts["dtype"] = str(q.dtype).removeprefix("torch.")
facts["taken"] = SDPBackend(torch._fused_sdp_choice(q, k, v)).name.removesuffix("_ATTENTION").lower()
facts["kernels"] = []
for name in ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH"):
    try:
        with sdpa_kernel(getattr(SDPBackend, name)):
            if (F.scaled_dot_product_attention(q, k, v).double() - exact).abs().max() < 1e-2:
                facts["kernels"].append(name.removesuffix("_ATTENTION").lower())
    except Exception:
        pass
print(json.dumps(facts))
"""
TORCHVISION = """
import json, torchvision
from torchvision.extension import _has_ops
print(json.dumps({"ops": bool(_has_ops())}))
"""
DIFFUSERS = """
import json
from diffusers import ConsistencyModelPipeline, UNet2DModel
print(json.dumps({}))
"""
XFORMERS = """
import json, torch, xformers.ops
device = "cuda" if torch.cuda.is_available() else "cpu"
q = torch.randn(1, 64, 2, 32, device=device, dtype=torch.float16 if device == "cuda" else torch.float32)
xformers.ops.memory_efficient_attention(q, q, q)
print(json.dumps({}))
"""
