"""What each GPU type can do at most: the data sheets' numbers, one table.

Peaks are dense (no sparsity) tensor-core numbers from the vendors' pages (NVIDIA V100, A100, H100, H200, B200/GB200, B300/GB300
data sheets; AMD MI300X). What is reached in training is fitted in `constants.py`, not here.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuType:
    """One GPU as its data sheet describes it; bytes are bytes, GB are 10^9."""

    name: str
    family: str
    """GPUs that share fitted constants."""
    bf16_tflops: float
    fp8_tflops: float
    """0: no such units."""
    fp4_tflops: float
    memory_gib: float
    """Usable for a process, before the CUDA context."""
    memory_gb_s: float
    multiprocessors: int
    nvlink_gb_s: float
    """One direction."""
    nvlink_domain: int
    """GPUs that reach each other by NVLink; for HGX boards the node."""
    power_w: float
    """Thermal design power, or the cap the name states."""
    internode_gbit_s_per_gpu: float
    """Network of the vendor's reference system, used where a source states none."""

    def peak_tflops(self, precision: str) -> float:
        """Dense peak for "bf16" (fp16 alike), "fp8" or "fp4"; lower precisions fall back to the next one the GPU has."""
        fp8 = self.fp8_tflops or self.bf16_tflops
        return {"bf16": self.bf16_tflops, "fp8": fp8, "fp4": self.fp4_tflops or fp8, "fp32": self.bf16_tflops / 2}[precision]


def _gpu(
    name: str, family: str, tflops: tuple[float, float, float], memory: tuple[float, float], sms: int, **rest: float
) -> GpuType:
    return GpuType(
        name=name,
        family=family,
        bf16_tflops=tflops[0],
        fp8_tflops=tflops[1],
        fp4_tflops=tflops[2],
        memory_gib=memory[0],
        memory_gb_s=memory[1],
        multiprocessors=sms,
        nvlink_gb_s=rest["nvlink"],
        nvlink_domain=int(rest.get("domain", 8)),
        power_w=rest["watts"],
        internode_gbit_s_per_gpu=rest["net"],
    )


GPUS: Mapping[str, GpuType] = {
    gpu.name: gpu
    for gpu in (
        _gpu("V100-32G", "V100", (125, 0, 0), (31.7, 900), 80, nvlink=150, domain=16, watts=350, net=50),
        _gpu("V100-16G", "V100", (125, 0, 0), (15.8, 900), 80, nvlink=150, watts=300, net=12.5),
        _gpu("A100-40G", "A100", (312, 0, 0), (39.4, 1555), 108, nvlink=300, watts=400, net=200),
        _gpu("A100-80G", "A100", (312, 0, 0), (79.2, 2039), 108, nvlink=300, watts=400, net=200),
        _gpu("A100-40G-PCIe", "A100", (312, 0, 0), (39.4, 1555), 108, nvlink=26, watts=250, net=25),
        _gpu("A100-80G-PCIe", "A100", (312, 0, 0), (79.2, 1935), 108, nvlink=26, watts=300, net=25),
        _gpu("A800-80G", "A100", (312, 0, 0), (79.2, 2039), 108, nvlink=200, watts=400, net=200),
        _gpu("H100-80G", "H100", (989, 1979, 0), (79.1, 3350), 132, nvlink=450, watts=700, net=400),
        _gpu("H800-80G", "H100", (989, 1979, 0), (79.1, 3350), 132, nvlink=200, watts=700, net=400),
        _gpu("H100-96G-HBM2e-500W", "H100-500W", (989, 1979, 0), (95.0, 2400), 132, nvlink=450, watts=500, net=400),
        _gpu("H100-80G-PCIe", "H100", (756, 1513, 0), (79.1, 2000), 114, nvlink=52, watts=350, net=50),
        _gpu("H20-96G", "H100", (148, 296, 0), (95.5, 4000), 78, nvlink=450, watts=400, net=400),
        _gpu("H200", "H100", (989, 1979, 0), (139.8, 4800), 132, nvlink=450, watts=700, net=400),
        _gpu("GH200", "H100", (989, 1979, 0), (94.5, 4000), 132, nvlink=450, domain=4, watts=900, net=200),
        _gpu("B200", "B200", (2250, 4500, 9000), (178.4, 7700), 148, nvlink=900, watts=1000, net=400),
        _gpu("B300", "B300", (2250, 4500, 13500), (267.7, 8000), 148, nvlink=900, watts=1400, net=800),
        _gpu("GB200", "B200", (2450, 4900, 9800), (184.0, 8000), 152, nvlink=900, domain=72, watts=1200, net=400),
        _gpu("GB300", "B300", (2450, 4900, 14700), (276.0, 8000), 152, nvlink=900, domain=72, watts=1400, net=800),
        # No accelerator at all: one training process on a few cores, so that the lab's runs can be planned and calibrated too.
        _gpu("CPU", "CPU", (0.1, 0, 0), (4.0, 10), 2, nvlink=1, domain=1, watts=65, net=10),
        _gpu("MI300X", "MI300X", (1307, 2614, 0), (191.5, 5300), 304, nvlink=448, watts=750, net=400),
    )
}
"""Name as tables of runs write it → GPU."""

ALIASES: Mapping[str, str] = {
    "A100": "A100-80G",
    "A100-SXM4-80GB": "A100-80G",
    "A100-SXM4-40GB": "A100-40G",
    "A100-PCIE-40G": "A100-40G-PCIe",
    "A100-PCIE-80G": "A100-80G-PCIe",
    "A100-PCIE": "A100-40G-PCIe",
    "H100-PCIE": "H100-80G-PCIe",
    "H20": "H20-96G",
    "H100": "H100-80G",
    "H100-SXM": "H100-80G",
    "H100-SXM5-80GB": "H100-80G",
    "V100": "V100-32G",
    "A800": "A800-80G",
    "H800": "H800-80G",
    "H200-141G": "H200",
    "B200-180G": "B200",
    "B200-192G": "B200",
    "H100-96G": "H100-96G-HBM2e-500W",
}
"""Other spellings of the same."""


def find_gpu(name: str) -> GpuType | None:
    """The GPU of that name, however it is spelled: vendor words and case are passed over. None where no row of the table fits."""
    word = name.strip().upper().replace("NVIDIA", "").replace("AMD", "").replace(" ", "-").replace("_", "-").strip("-")
    known = {key.upper(): gpu for key, gpu in GPUS.items()} | {key.upper(): GPUS[to] for key, to in ALIASES.items()}
    if word in known:
        return known[word]
    parts = [part for part in word.split("-") if part and not part.startswith(BOARD_WORDS)]
    sized = [f"{part[:-2]}G" if part.endswith("GB") and part[:-2].isdigit() else part for part in parts]
    return known.get("-".join(sized)) or (known.get(sized[0]) if len(sized) == 1 else None)


BOARD_WORDS = ("SXM", "HBM", "DGX", "HGX", "OAM", "TENSOR", "CORE", "GPU", "TESLA")
"""Words of product names that say nothing the table tells apart. PCIe is not among them: those boards are slower."""
