"""Verify bundles as the public model zoo verifies an upload, offline: one line a check, exit code 1 on a fault.

    python ci/verify_bundles.py                    # every folder below bundles/
    python ci/verify_bundles.py sense_mr DIR/other_ct --root bundles
    python ci/verify_bundles.py --published zoo/model_info.json       # besides: is every version new?

| the public zoo, full mode                       | here                                                              |
|---|---|
| necessary and preferred files, licence          | `files`: all of them for every bundle, no exclude list; leftovers |
| version in the changelog, and new               | `metadata`; `published` (with --published)                        |
| metadata against the schema                     | `metadata`: our stricter schema, and MONAI's `verify_metadata`    |
| requirements install                            | `requirements`: they exist, and cover what the modules import     |
| large files: paths, hashes                      | `files`: inside the bundle, https, SHA-256 or SHA-512             |
| logging file                                    | `files`: one that MONAI agrees to apply                           |
| checkpoint loads                                | `checkpoint`: tensors only, finite, strict, the stated hash       |
| properties of the workflows (where an app asks) | `properties`: always, of inference, every variant, and training   |
| shapes (`verify_net_in_out`)                    | `network`: and the output's shape                                 |
| TorchScript (`ckpt_export`)                     | `torchscript`: loaded again, equal outputs                        |
| (nothing)                                       | `tuning`, `torch.export`                                          |

Style, types and each bundle's own tests are steps of `ci/check.sh`, which runs these checks as tests of every bundle.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", help="names below --root, or folders; every bundle by default")
    parser.add_argument("--root", help="folder of the bundles (default: MULTIRECON_BUNDLES, else ./bundles)")
    parser.add_argument("--published", type=Path, help="model_info.json of a zoo: its versions may not be used again")
    options = parser.parse_args(arguments)

    from multirecon.bundle.contract import CHECKS, Inspection, run_check
    from multirecon.bundle.folder import discover, find
    from multirecon.bundle.upload import published_faults

    try:
        chosen = [find(b, options.root) for b in options.bundles] if options.bundles else discover(options.root)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    count = failed = 0
    for bundle in chosen:
        look = Inspection(bundle)
        for check in [*CHECKS, *(["published"] if options.published else [])]:
            begin = time.perf_counter()
            new = check == "published"
            faults = published_faults(bundle, options.published) if new else run_check(check, look)
            count += 1
            failed += bool(faults)
            verdict = "FAIL" if faults else "ok"
            text = f"{verdict:4}  {bundle.name:28} {check:13} {time.perf_counter() - begin:6.2f} s"
            print(f"{text}  {'; '.join(faults)}".rstrip(), flush=True)
    print(f"{len(chosen)} bundles, {count} checks, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
