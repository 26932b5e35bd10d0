"""What fewer training anatomies cost plug-and-play and a network after OSEM: `python ci/pnp_frugality.py FOLDER`.

The folder holds `pnp_N.pt` (`configs/train.json` of `pnp_admm_pet`) and `post_N.pt` (with `train_postprocess.json`),
trained on N anatomies: `multirecon dataset build SET/train --split train --anatomies ...`. Prints the PSNR on the test
slices of a task, and by how much more the other network loses, paired by slice, with an interval over heads.
"""

import argparse
from pathlib import Path

import torch

from multirecon.bundle import find, load, read_weights
from multirecon.harness.statistics import anatomy_interval
from multirecon.metrics.evaluate import evaluate_image
from multirecon.networks.dncnn import DnCNN
from multirecon.reconstruction.plug_and_play import mean_activity
from multirecon.solvers import osem
from multirecon.tasks import load as load_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--numbers", type=int, nargs="+", default=[2, 4, 9])
    parser.add_argument("--task", default="pet_counts_5")
    parser.add_argument("--limit", type=int, help="only the first samples")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task, workflow = load_task(arguments.task), load(find("pnp_admm_pet"))
    names = [f"{kind}_{n}" for kind in ("pnp", "post") for n in arguments.numbers]
    networks = {name: DnCNN(8, 48).eval() for name in names}
    for name, network in networks.items():
        network.load_state_dict(read_weights(arguments.folder / f"{name}.pt"))
    samples = task.samples()
    values: dict[str, list[tuple[str, float]]] = {name: [] for name in names}
    for index in range(min(len(samples), arguments.limit or len(samples))):
        item = samples[index]
        m, truth = task.measure(item)
        with torch.no_grad():
            start = osem(m.operator["pet_fdg"], m.likelihood["pet_fdg"], m.y["pet_fdg"], subsets=6, iterations=4)
            scale = mean_activity(start).reshape(-1, 1, 1, 1)
            for name, network in networks.items():
                if name.startswith("pnp"):
                    image = torch.as_tensor(workflow.inferer(m, network, generator=torch.Generator().manual_seed(0)))
                else:
                    image = scale * network(start / scale)
                score = evaluate_image(image, truth, m.space, targets=["pet_fdg"], metrics=["psnr"])
                values[name].append((str(item["id"]).split("/")[0], score["pet_fdg"]["psnr"]))
    print("| training anatomies | plug-and-play dB | network after OSEM dB |\n|---|---|---|")
    for n in arguments.numbers:
        cells = (anatomy_interval(values[f"{kind}_{n}"]).text(2) for kind in ("pnp", "post"))
        print(f"| {n} | {' | '.join(cells)} |")
    first, last = min(arguments.numbers), max(arguments.numbers)
    losses = {k: [a[1] - b[1] for a, b in zip(values[f"{k}_{last}"], values[f"{k}_{first}"], strict=True)]
              for k in ("pnp", "post")}  # fmt: skip
    heads = [head for head, _ in values[names[0]]]
    gap = anatomy_interval([(h, q - p) for h, p, q in zip(heads, losses["pnp"], losses["post"], strict=True)])
    print(f"from {last} to {first} anatomies the network after OSEM loses {gap.text(2, sign=True)} dB more")


if __name__ == "__main__":
    main()
