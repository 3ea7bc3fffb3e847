"""Build the container image with buildah and Debian's packages, for machines without Docker.

If the base image that `config/Dockerfile` names by its digest is missing, debootstrap makes another
one, with Debian's Python, from packages that Debian has signed. An image for another architecture
takes its programs, which qemu runs; the archive in it is built by this machine's own.
"""

import subprocess
import sys

from visionserve_tools import advice, container, emulation
from visionserve_tools.arguments import Parser


def main() -> int:
    """Run the command."""
    parser = Parser(
        prog="visionserve image",
        description=__doc__,
        example="visionserve image --tag visionserve:1.0.0 --model resnet18",
    )
    parser.add_argument("--tag", default="visionserve:1.0.0")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--arch", default=emulation.own(), choices=emulation.ARCHITECTURES.values())
    args = parser.parse_args()
    advice.end_without_sources("image")
    try:
        container.build(args.tag, args.device, args.model, args.arch)
    except (emulation.EmulationError, OSError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0
