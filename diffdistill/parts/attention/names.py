"""The names of attention kernels a user may give. No torch here: a wrong name must be refused in milliseconds."""

from difflib import get_close_matches

# Of PyTorch's scaled_dot_product_attention. All that names one of them is made of these: `sdpa-flash`,
# `_native_flash` of diffusers, FLASH_ATTENTION of torch.
KERNELS = ("flash", "efficient", "cudnn", "math")
SDPA = ("sdpa", *(f"sdpa-{kernel}" for kernel in KERNELS))
NATIVE = ("native", *(f"_native_{kernel}" for kernel in KERNELS))
# diffusers' own names (its AttentionBackendName), less those that fetch code from the Hub and run it, and less flex,
# which is slower than math and warns of wrong gradients unless the whole network is compiled.
BACKENDS = (
    *("xformers", "flash", "flash_varlen", "_flash_3", "_flash_varlen_3"),
    *NATIVE,
    *("_native_npu", "_native_xla", "sage", "sage_varlen"),
    *("_sage_qk_int8_pv_fp8_cuda", "_sage_qk_int8_pv_fp8_cuda_sm90"),
    *("_sage_qk_int8_pv_fp16_cuda", "_sage_qk_int8_pv_fp16_triton"),
)
POLICIES = ("auto", *SDPA, *BACKENDS)
ALLOWED = f"auto, {', '.join(SDPA)}, xformers, or a backend of diffusers such as flash or sage"


def attention_name(name: str) -> str:
    """`name` if it is an attention policy; else a ValueError that says which there are."""
    if name in POLICIES:
        return name
    if name.endswith("_hub"):
        raise ValueError(f"attention '{name}' would fetch code from the Hub and run it; use {ALLOWED}")
    near = get_close_matches(name, POLICIES, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"use {ALLOWED}"
    raise ValueError(f"attention '{name}' is unknown; {hint}")


def kernel_of(policy: str) -> str:
    """The one kernel of scaled_dot_product_attention that a policy names, "" where it leaves the choice."""
    kernel = policy.removeprefix("sdpa-").removeprefix("_native_")
    return kernel if kernel != policy and kernel in KERNELS else ""
