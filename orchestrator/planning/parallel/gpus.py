"""What each GPU type can do at most: the data sheets' numbers, one table.

Peaks are dense (no sparsity) tensor-core numbers from the vendors' pages (data sheets of NVIDIA V100 to GB300, of its Ampere and
Ada boards with GDDR memory, and of AMD MI210 to MI355X). What is reached in training is fitted in `constants.py`, not here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace


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
        _gpu("A800-40G", "A100", (312, 0, 0), (39.4, 1555), 108, nvlink=200, watts=400, net=200),
        _gpu("A800-80G", "A100", (312, 0, 0), (79.2, 2039), 108, nvlink=200, watts=400, net=200),
        _gpu("A30-24G", "A100", (165, 0, 0), (23.6, 933), 56, nvlink=26, watts=165, net=25),
        _gpu("A40-48G", "Ampere-GDDR", (150, 0, 0), (44.5, 696), 84, nvlink=26, watts=300, net=25),
        _gpu("A10-24G", "Ampere-GDDR", (125, 0, 0), (22.5, 600), 72, nvlink=13, watts=150, net=12.5),
        _gpu("RTX A6000-48G", "Ampere-GDDR", (155, 0, 0), (47.5, 768), 84, nvlink=26, watts=300, net=12.5),
        # Consumer boards accumulate in fp32 at half the rate of the same chips in workstations.
        _gpu("RTX 3090-24G", "Ampere-GDDR", (71, 0, 0), (23.7, 936), 82, nvlink=13, watts=350, net=12.5),
        _gpu("RTX 4090-24G", "Ada", (165, 330, 0), (23.6, 1008), 128, nvlink=13, watts=450, net=12.5),
        _gpu("RTX 5090-32G", "Ada", (210, 419, 838), (31.8, 1792), 170, nvlink=26, watts=575, net=12.5),
        _gpu("L4-24G", "Ada", (121, 242, 0), (22.5, 300), 58, nvlink=13, watts=72, net=12.5),
        _gpu("L40-48G", "Ada", (181, 362, 0), (44.5, 864), 142, nvlink=26, watts=300, net=25),
        _gpu("L40S-48G", "Ada", (362, 733, 0), (44.5, 864), 142, nvlink=26, watts=350, net=50),
        _gpu("H100-80G", "H100", (989, 1979, 0), (79.1, 3350), 132, nvlink=450, watts=700, net=400),
        _gpu("H800-80G", "H100", (989, 1979, 0), (79.1, 3350), 132, nvlink=200, watts=700, net=400),
        _gpu("H100-96G-HBM2e-500W", "H100-500W", (989, 1979, 0), (95.0, 2400), 132, nvlink=450, watts=500, net=400),
        _gpu("H100-80G-PCIe", "H100", (756, 1513, 0), (79.1, 2000), 114, nvlink=52, watts=350, net=50),
        _gpu("H100-NVL-94G", "H100", (835, 1671, 0), (93.1, 3900), 132, nvlink=300, domain=2, watts=400, net=100),
        _gpu("H20-96G", "H100", (148, 296, 0), (95.5, 4000), 78, nvlink=450, watts=400, net=400),
        _gpu("H200", "H100", (989, 1979, 0), (139.8, 4800), 132, nvlink=450, watts=700, net=400),
        _gpu("GH200", "H100", (989, 1979, 0), (94.5, 4000), 132, nvlink=450, domain=4, watts=900, net=200),
        _gpu("B100", "B200", (1750, 3500, 7000), (178.4, 7700), 148, nvlink=900, watts=700, net=400),
        _gpu("B200", "B200", (2250, 4500, 9000), (178.4, 7700), 148, nvlink=900, watts=1000, net=400),
        _gpu("B300", "B300", (2250, 4500, 13500), (267.7, 8000), 148, nvlink=900, watts=1400, net=800),
        _gpu("GB200", "B200", (2450, 4900, 9800), (184.0, 8000), 152, nvlink=900, domain=72, watts=1200, net=400),
        _gpu("GB300", "B300", (2450, 4900, 14700), (276.0, 8000), 152, nvlink=900, domain=72, watts=1400, net=800),
        # No accelerator at all: one training process on one core, so that the lab's runs can be planned and calibrated too. Of
        # its 0.3 TFLOP/s the general constants leave a third, which is what a core with AVX2 reaches (95 GFLOP/s in fp32).
        _gpu("CPU", "CPU", (0.3, 0, 0), (4.0, 10), 2, nvlink=1, domain=1, watts=65, net=10),
        _gpu("MI210-64G", "MI250X", (181, 0, 0), (63.9, 1638), 104, nvlink=150, domain=4, watts=300, net=50),
        # Of an MI250 and MI250X every one of the two dies is a GPU of its own to the software.
        _gpu("MI250X", "MI250X", (191.5, 0, 0), (63.9, 1638), 110, nvlink=100, watts=280, net=100),
        _gpu("MI300X", "MI300X", (1307, 2614, 0), (191.5, 5300), 304, nvlink=448, watts=750, net=400),
        _gpu("MI325X", "MI300X", (1307, 2614, 0), (255.5, 6000), 304, nvlink=448, watts=1000, net=400),
        _gpu("MI355X", "MI300X", (2300, 4600, 9200), (287.5, 8000), 256, nvlink=538, watts=1400, net=400),
    )
}
"""Name as tables of runs write it → GPU."""

DEFAULT_BOARD: Mapping[str, str] = {
    "V100": "V100-32G",
    "A100": "A100-80G",
    "A800": "A800-80G",
    "H100": "H100-80G",
    "H800": "H800-80G",
    "A10G": "A10-24G",
    "A6000": "RTX A6000-48G",
    "RTX6000ADA": "L40-48G",
}
"""Chip → the board that is meant where neither memory nor form is said."""

CHIP = re.compile(
    r"(GB300|GB200|GH200|B300|B200|B100|H20(?!0)|H200|H800|H100|A800|A100|V100|A6000|A40|A30|A10G?|L40S?|L4|CPU)(?!\d)"
)
OTHER_CHIP = re.compile(r"(MI\d{3}X?|RTX(?:6000ADA|A6000|3090|4090|5090))")
MEMORY = re.compile(r"(?<![A-Z0-9])(\d{2,3})GI?B?(?![A-Z0-9])")


def find_gpu(name: str) -> GpuType | None:
    """The GPU of that name, however it is spelled: vendor, board and case are passed over, memory and PCIe are heeded.

    A memory that the table does not have is taken from the name: some sites run boards made for them. None where no chip of the
    table is named.
    """
    word = name.strip().upper()
    known = {key.upper(): gpu for key, gpu in GPUS.items()}
    if word in known:
        return known[word]
    chip = _chip_of(word)
    if chip is None:
        return None
    size = MEMORY.search(word)
    memory_gb = int(size[1]) if size else None
    if chip == "H100" and memory_gb == 96 and "HBM3" not in word:
        return GPUS["H100-96G-HBM2e-500W"]
    pcie = "PCI" in word
    boards = [g for key, g in GPUS.items() if _chip_of(key.upper()) == chip and ("PCIe" in key) == pcie and "HBM2e" not in key]
    boards = [g for g in boards if ("NVL" in g.name) == (re.search(r"NVL(?!\d|INK)", word) is not None)] or boards
    plain = GPUS.get(DEFAULT_BOARD.get(chip, chip))
    if memory_gb is None or not boards:
        return plain if plain in boards or not boards else boards[-1]
    gpu = min(boards, key=lambda board: abs(board.memory_gib - memory_gb))
    # More than any board of the chip has is the memory of something else: of a GH200's processor, say.
    odd = abs(gpu.memory_gib - memory_gb) > 0.1 * gpu.memory_gib and memory_gb < 1.5 * gpu.memory_gib
    return replace(gpu, memory_gib=0.985 * memory_gb) if odd else gpu


def _chip_of(word: str) -> str | None:
    """The chip a name in capitals holds; the first one, if several."""
    joined = re.sub(r"[^A-Z0-9.]", "", word)
    other = OTHER_CHIP.search(joined)
    if other:
        return _in_table(other[1])
    parts = [part for part in re.split(r"[^A-Z0-9]+", word) if part]
    for part in parts:
        found = CHIP.fullmatch(re.sub(r"^\d+X(?=[A-Z])|SXM\d*$|NVL\d+$|PCIE$", "", part))
        if found:
            return found[1]
    found = CHIP.search(word)
    return found[1] if found else None


def _in_table(chip: str) -> str:
    """A chip by the table's name, where the table's ends in X: MI250, MI300."""
    return f"{chip}X" if f"{chip}X" in GPUS else chip
