"""Verify bundles as the public model zoo verifies an upload, offline: one line a check, exit code 1 on a fault.

    python ci/verify_bundles.py                    # every folder below bundles/
    python ci/verify_bundles.py sense_mr DIR/other_ct --root bundles

Checked: the files of the standard form; metadata against our schema and by MONAI's `verify_metadata`, with the current
version in the changelog; the checkpoint (tensors only, strict); `check_properties`; the network's input and output by
MONAI's `verify_net_in_out`; TorchScript by MONAI's `ckpt_export`, loaded again; `torch.export`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", help="names below --root, or folders; every bundle by default")
    parser.add_argument("--root", help="folder of the bundles (default: MULTIRECON_BUNDLES, else ./bundles)")
    options = parser.parse_args(arguments)

    from multirecon.bundle.contract import CHECKS, Inspection, run_check
    from multirecon.bundle.folder import discover, find

    try:
        chosen = [find(b, options.root) for b in options.bundles] if options.bundles else discover(options.root)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    failed = 0
    for bundle in chosen:
        look = Inspection(bundle)
        for check in CHECKS:
            begin = time.perf_counter()
            faults = run_check(check, look)
            failed += bool(faults)
            verdict = "FAIL" if faults else "ok"
            text = f"{verdict:4}  {bundle.name:28} {check:13} {time.perf_counter() - begin:6.2f} s"
            print(f"{text}  {'; '.join(faults)}".rstrip(), flush=True)
    print(f"{len(chosen)} bundles, {len(chosen) * len(CHECKS)} checks, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
