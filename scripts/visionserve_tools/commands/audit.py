"""List the Java libraries in TorchServe's frontend, and ask OSV for advisories; `make audit`."""

from visionserve_tools.arguments import Parser

OSV = "https://api.osv.dev/v1/query"


def main() -> int:
    """Run the command."""
    parser = Parser(prog="visionserve audit", description=__doc__, example="visionserve audit")
    parser.add_argument("--osv", default=OSV, help="address of OSV's query (default: %(default)s)")
    args = parser.parse_args()
    from visionserve_tools.server import libraries

    return libraries.audit(args.osv)
