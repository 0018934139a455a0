"""Loads Stable Diffusion 1.x at full size with random weights: memory beside that of the weights, and the first forward beside diffusers'.

A file of each precision is written to ``--folder`` (4.3 and 2.1 GB). Each row is a process of its own. Memory is the highest resident
size of that process less what Python, PyTorch, transformers and the other imports take (``imports``): when loaded, when every weight has
been read from the mapped file, and when the UNet has run once (32 x 32 latents, with its activations); the whole process, imports too,
stands beside. diffusers gets the same weights by its own conversion of names. That a difference would be seen is shown by one number of
its 860 million, changed afterwards: the run fails if the outputs do not part.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from record import save, table

from latentworks.checkpoints.clip import CLIP_L, clip_assets
from latentworks.checkpoints.compvis import load_compvis
from latentworks.checkpoints.compvis_keys import authors_keys
from latentworks.checkpoints.tensors import read_tensors, without_weights, write_tensors
from latentworks.conditioners import FrozenTextConfig, build_conditioner
from latentworks.diffusion.process import Process, ProcessConfig
from latentworks.first_stage import KLConfig, build_first_stage
from latentworks.model import LatentDiffusion
from latentworks.types import Cond, Gives
from latentworks.unet import UNet, UNetConfig

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}


def peak() -> int:
    """The highest resident size of this process so far, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def write(path: Path, dtype: torch.dtype) -> None:
    """Random weights of the right size, small enough that a forward stays finite."""
    with without_weights():
        text = build_conditioner(FrozenTextConfig(encoder="openai/clip-vit-large-patch14", mask=False), clip_assets(CLIP_L, None))
        first_stage = build_first_stage(KLConfig(multipliers=(1, 2, 4, 4), latent_channels=4))
        unet = UNet(UNetConfig(channels=320, multipliers=(1, 2, 4, 4), attention=(4, 2, 1), heads=8), 4, Gives(context=768))
        model = LatentDiffusion(first_stage, unet, Process(ProcessConfig()), [text])
    generator, own = torch.Generator().manual_seed(0), model.state_dict()
    tensors = {}
    for ours, theirs in authors_keys(model).items():
        shape = own[ours].shape
        scale = (3 / shape[1:].numel()) ** 0.5 if len(shape) > 1 else 0.1  # signals keep their size, so that every weight matters
        centre = 1.0 if len(shape) == 1 and ours.endswith("weight") else 0.0  # of a norm
        tensors[theirs] = torch.empty(shape, dtype=dtype).uniform_(centre - scale, centre + scale, generator=generator)
    write_tensors(path, tensors)


def given() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy latent, step and context."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, 4, 32, 32, generator=generator), torch.tensor([501]), torch.randn(1, 77, 768, generator=generator)


@torch.no_grad()
def ours(path: Path, precision: str) -> dict[str, Any]:
    """Load and run in this process."""
    import transformers.models.clip.modeling_clip  # noqa: F401 (the text encoder's class; imported when a model is loaded, hence counted apart)

    before, start = peak(), time.perf_counter()
    model = load_compvis(path, dtype=PRECISIONS[precision])
    seconds, loaded = time.perf_counter() - start, peak()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    touched = sum(float(p.view(-1)[:: 4096 // p.element_size()].float().sum()) for p in model.parameters())  # a value of every page
    read = peak()
    x, t, context = (value.to(PRECISIONS[precision]) if value.is_floating_point() else value for value in given())
    out = model.unet(x, t, Cond(context=context))
    torch.save(out.float(), path.with_suffix(".ours"))
    figures = {"weights": weights, "imports": before, "loaded": loaded - before, "read": read - before, "forward": peak() - before}
    return {"seconds": seconds, "finite": touched == touched, **figures}


@torch.no_grad()
def theirs(path: Path, precision: str) -> dict[str, Any]:
    """The same with diffusers' UNet: the largest difference as a share of the largest value, and that after one number has changed."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    sizes = {"cross_attention_dim": 768, "attention_head_dim": 8, "block_out_channels": (320, 640, 1280, 1280)}
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, **sizes)
    weights = convert_ldm_unet_checkpoint(read_tensors(path), unet.config)
    unet.load_state_dict(weights, strict=True, assign=True)
    x, t, context = (value.to(PRECISIONS[precision]) if value.is_floating_point() else value for value in given())
    mine = torch.load(path.with_suffix(".ours"))

    def difference() -> tuple[float, float]:
        out = unet.eval()(x, t, context).sample.float()
        return float((out - mine).abs().max() / out.abs().max()), float(out.std())

    same, deviation = difference()
    unet.mid_block.resnets[0].conv1.weight[0, 0, 1, 1] += 1
    return {"difference": same, "changed": difference()[0], "deviation": deviation}


def main() -> None:
    """Write the files, run every row in its own process, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to write the files; default: a temporary one")
    parser.add_argument("--row", nargs=3, metavar=("SIDE", "FILE", "PRECISION"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        side, file, precision = arguments.row
        print(json.dumps((ours if side == "ours" else theirs)(Path(file), precision)))
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for precision, dtype in PRECISIONS.items():
            file = Path(folder) / f"{precision}.safetensors"
            write(file, dtype)
            row: dict[str, Any] = {"precision": precision}
            for side in ("ours", "theirs"):
                command = [sys.executable, __file__, "--row", side, str(file), precision]
                row |= json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            if not row["changed"] > row["difference"]:
                raise SystemExit(f"{precision}: a number of the UNet was changed and nothing was seen: the comparison is void")
            row["times"] = {key: row[key] / row["weights"] for key in ("loaded", "read", "forward")}
            row["times"]["process"] = (row["imports"] + row["read"]) / row["weights"]
            rows.append(row)
            file.unlink()
    save("sd_load", rows, what="Stable Diffusion 1.x, random weights; bytes above the imports; differences of the UNet's first forward")
    memory = ("Memory when loaded", "when all is read", "after a forward", "all read, with imports")
    columns = ("Weights", "GB", "Seconds to load", *memory, "Difference from diffusers", "with one number changed")
    shown = [
        [
            row["precision"], f"{row['weights'] / 1e9:.2f}", f"{row['seconds']:.1f}",
            *(f"{row['times'][key]:.2f} x" for key in ("loaded", "read", "forward", "process")),
            *(f"{row[key]:.1e}" for key in ("difference", "changed")),
        ]
        for row in rows
    ]  # fmt: skip
    print(table(columns, shown))


if __name__ == "__main__":
    main()
