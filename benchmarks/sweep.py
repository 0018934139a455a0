"""What sampler, number of steps and guidance do to a model of emoji: one setting at a time changed, the others as the model's own are.

For every setting the same captions of training emoji are drawn from the same noise and measured as in `comparison.py`: the distance to all
captioned training images, how often the emoji named is nearest or among the five nearest, pictures a second. Settings that an earlier call
measured, of the same weights and captions, stay in the result. The curves go to results/sweep-steps.svg and results/sweep-guidance.svg; `lw
report RUN --sweep benchmarks/results/sweep.json` shows them beside the run.

    python benchmarks/sweep.py openmoji-64 --data openmoji -n 250
"""

import argparse
import json
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from comparison import Judge
from conditions import fingerprint
from record import RESULTS, save, table
from restoration import pipeline

from latentworks.diffusion.samplers import SAMPLERS
from latentworks.report.blocks import Charts
from latentworks.report.documents import swept
from latentworks.request import SampleRequest

STEPS, GUIDANCE = (4, 6, 10, 20, 50, 100, 200), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)


def settings(options: argparse.Namespace, sampler: str, steps: int, guidance: float) -> Iterator[dict[str, Any]]:
    """Every setting once: each sampler with each number of steps, then the model's own with each guidance."""
    for count in options.steps:
        for name in options.samplers:
            yield {"sampler": name, "steps": count, "guidance": guidance}
    for scale in options.guidance:
        if scale != guidance:
            yield {"sampler": sampler, "steps": steps, "guidance": scale}


def draw_curves(rows: list[dict[str, Any]]) -> None:
    """The report's charts of the result, as files beside it."""
    for block in swept(rows, "sweep", "All rows"):
        if isinstance(block, Charts):
            for chart in block.charts:
                (RESULTS / f"sweep-{chart.title.split()[-1]}.svg").write_text(standalone(chart.svg))


def standalone(svg: str) -> str:
    """A chart of the report as a file of its own: in the colours of its page by daylight, on that page's paper."""
    light, *_ = (files("latentworks.report") / "templates" / "style.css").read_text(encoding="utf-8").split("}")
    colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]+)", light))
    begin = f'<svg xmlns="http://www.w3.org/2000/svg" style="background: {colours["paper"]}; color: {colours["ink"]}" '
    svg = svg.replace("<svg ", begin, 1)
    return re.sub(r"var\(--([a-z0-9-]+)\)", lambda found: colours[found[1]], svg)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model that draws from captions")
    parser.add_argument("--data", type=Path, required=True, help="what `lw data openmoji` wrote")
    parser.add_argument("-n", type=int, default=250, help="captions (default: 250)")
    parser.add_argument("--samplers", nargs="+", default=[*SAMPLERS], choices=SAMPLERS)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help=f"default: {' '.join(map(str, STEPS))}")
    parser.add_argument("--guidance", type=float, nargs="+", default=GUIDANCE, help=f"default: {' '.join(f'{g:g}' for g in GUIDANCE)}")
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"], help="of drawing (default: float32)")
    options = parser.parse_args()
    pipe, judge = pipeline(options.model, precision=options.precision), Judge(options.data, options.n)
    own = pipe.filled(SampleRequest())
    assert own.sampler is not None
    assert own.steps is not None
    assert own.guidance is not None
    facts = {"model": Path(options.model).name, "weights": fingerprint(options.model), "n": options.n, "seed": 0}
    facts["precision"] = options.precision
    path = RESULTS / "sweep.json"
    result = json.loads(path.read_text()) if path.is_file() else {}
    rows = result.get("rows", []) if all(result.get(name) == value for name, value in facts.items()) else []
    for setting in settings(options, own.sampler, own.steps, own.guidance):
        if not any(all(row[name] == value for name, value in setting.items()) for row in rows):
            rows.append({**setting, **judge.drawn(pipe, SampleRequest(**setting, seed=0, batch=32))})
            save("sweep", rows, **facts)
    draw_curves(rows)
    columns = list(rows[0])
    print(table(columns, [[str(row.get(column, "")) for column in columns] for row in rows]))
    print("\nwritten to", path)


if __name__ == "__main__":
    main()
