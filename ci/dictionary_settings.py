"""PSNR of dictionary reconstructions on one slice of each validation anatomy, for settings and controls.

    python ci/dictionary_settings.py petct_lowdose cdl_petct joint,1,1 separate,3,3 tv:separate:0.35 tv:joint:0.6
    python ci/dictionary_settings.py dect_sparse mcaol_spectralct joint,0.3,0.3 separate,0.3,0.3 dct,0.3,0.3

A word is MODE,WEIGHT,SPARSITY (or COST) with the bundle's filters (joint, separate), the cosine transform (dct) or
freshly drawn filters (random), or tv:PENALTY:WEIGHT. 20 alternations with 5 steps each; the data range is 1000 HU for
CT, 2 for PET, 1 for MR, else the scale of the modality.
"""

import argparse

import torch

from multirecon import tasks
from multirecon.bundle import load, load_network
from multirecon.harness.tuning_data import validation_task
from multirecon.metrics.image import psnr
from multirecon.networks.classical import RegularisationWeight
from multirecon.priors.dictionaries import AnalysisOperator, dct_bank
from multirecon.reconstruction import TotalVariationReconstruction, Tuning
from multirecon.units import WATER_ATTENUATION_70KEV

RANGES = {"ct": WATER_ATTENUATION_70KEV, "pet_fdg": 2.0, "t1": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("bundle")
    parser.add_argument("words", nargs="+", metavar="word")
    chosen = parser.parse_args()
    task = validation_task(tasks.load(chosen.task))
    cases = [task.measure(sample) for sample in task.samples("validation")]
    workflow = load(chosen.bundle, device="$torch.device('cpu')")
    learned = load_network(workflow)
    method = workflow.inferer.reconstructor
    method.iterations, method.inner_iterations = 20, 5
    setting = next(name for name in method.tuning.parameters if name != "weight")
    share = getattr(method, "share", None)
    for word in chosen.words:
        network, inferer = learned, method
        if word.startswith("tv:"):
            _, penalty, weight = word.split(":")
            inferer = TotalVariationReconstruction(
                penalty=penalty, tuning=Tuning({"weight": float(weight)}), iterations=60
            )
            network = RegularisationWeight().eval()
        else:
            mode, weight, other = word.split(",")
            method.tuning = Tuning({"weight": float(weight), setting: float(other)})
            if share is None:
                method.joint = mode != "separate"
            else:
                method.share = 0.0 if mode == "separate" else share
            if mode == "random":
                network = type(learned)(5) if share is None else type(learned)(*learned.filters.shape[1:3])
            if mode == "dct":
                network = AnalysisOperator(len(learned.filters))
                network.filters.copy_(dct_bank(7).float().expand_as(network.filters))
        found: dict[str, list[float]] = {}
        for measurement, truth in cases:
            result = inferer(measurement, network).as_tensor()
            for modality in measurement.space.modalities:
                part = measurement.space.channels(modality.name)
                value = psnr(result[:, part], truth[:, part], data_range=RANGES.get(modality.name, modality.scale))
                found.setdefault(modality.name, []).append(float(torch.as_tensor(value).mean()))
        print(f"{word:20}", {name: round(sum(v) / len(v), 2) for name, v in found.items()}, flush=True)


if __name__ == "__main__":
    main()
