"""Converts a synthetic file of 6 GB, a 1.45-billion-parameter text model in float32, and says how much memory that took.

The file is a ``torch.save`` of random weights in the authors' names, with their YAML. `lw convert` runs in a process of its own, to each
layout; its highest resident size is set beside the size of the file. Pages of the mapped file that were read count too.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from record import save, table

from latentworks.checkpoints.compvis_keys import authors_keys
from latentworks.checkpoints.compvis_yaml import to_yaml
from latentworks.checkpoints.tensors import without_weights
from latentworks.conditioners import TextConfig, build_conditioner
from latentworks.diffusion.process import Process, ProcessConfig
from latentworks.first_stage import KLConfig, build_first_stage
from latentworks.model import LatentDiffusion
from latentworks.types import Gives
from latentworks.unet import UNet, UNetConfig

RUN = "import sys; from latentworks.cli import main; sys.argv = ['lw', *sys.argv[1:]]; main()"


def write(path: Path) -> None:
    """The file and its YAML: txt2img-1p4B in the authors' zoo."""
    with without_weights():
        text = build_conditioner(TextConfig(width=1280, layers=32))
        first_stage = build_first_stage(KLConfig(multipliers=(1, 2, 4, 4), latent_channels=4))
        unet = UNet(UNetConfig(channels=320, multipliers=(1, 2, 4, 4), attention=(4, 2, 1), heads=8), 4, Gives(context=1280))
        model = LatentDiffusion(first_stage, unet, Process(ProcessConfig(beta_start=0.00085, beta_end=0.012)), [text])
    model.first_stage.set_statistics(torch.zeros(4), torch.tensor(1 / 0.18215))
    own = model.state_dict()
    state = {theirs: torch.empty(own[ours].shape).uniform_(-0.1, 0.1) for ours, theirs in authors_keys(model).items()}
    torch.save({"state_dict": state, "global_step": 0}, path)
    path.with_suffix(".yaml").write_text(yaml.safe_dump(to_yaml(model, 256)[0]))


def convert(source: Path, out: Path, layout: str) -> dict[str, Any]:
    """Run `lw convert`; its peak in bytes and its seconds."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", RUN, "convert", str(source), str(out), "--to", layout], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"lw convert --to {layout} failed")
    size = source.stat().st_size
    peak = usage.ru_maxrss * 1024
    return {"layout": layout, "file": size, "peak": peak, "times": peak / size, "seconds": time.perf_counter() - start}


def main() -> None:
    """Write the file, convert it to each layout, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to write the files, 18 GB; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source = Path(folder) / "model.ckpt"
        child = os.fork()  # so that making the weights takes no memory here
        if child == 0:
            write(source)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            raise SystemExit("the file could not be written")
        rows = [convert(source, Path(folder) / name, layout) for layout, name in (("native", "a"), ("compvis", "b.safetensors"))]
    save("convert_memory", rows, what="lw convert of a 1.45-billion-parameter text model in float32; highest resident size, bytes")
    shown = [
        [row["layout"], f"{row['file'] / 1e9:.2f}", f"{row['peak'] / 1e9:.2f}", f"{row['times']:.2f} x", f"{row['seconds']:.0f}"]
        for row in rows
    ]
    print(table(("To", "File in GB", "Peak memory in GB", "Times the file", "Seconds"), shown))


if __name__ == "__main__":
    main()
