"""Plan workers, queues and machines from measured figures, by the M/M/c queue (Erlang C).

Requests arrive at random (a Poisson process) in one queue, which all workers of a server share.
Service times are exponential, with a standard deviation equal to the mean. If the real ones vary
less, fewer are needed than it says; if they vary more, more.
"""

from visionserve_tools.arguments import Parser, real, whole

WORKERS = (1, 10, 1000)


def main() -> int:
    """Run the command."""
    parser = Parser(
        prog="visionserve capacity",
        description=__doc__,
        example="visionserve capacity --service-time-ms 8 --rate 1000 --workers 1 2 8 --p99-ms 100",
    )
    parser.add_argument(
        "--service-time-ms",
        type=real(0.001, 1e6),
        required=True,
        help="a request's mean time in one worker: 1000 / (images per second of a worker or a GPU)",
    )
    parser.add_argument(
        "--workers", type=whole(1, 100_000), nargs="+", default=WORKERS, help="of one queue"
    )
    parser.add_argument("--rate", type=real(1e-6, 1e9), help="requests per second of all clients")
    parser.add_argument(
        "--p99-ms", type=real(0.001, 1e9), help="time for 99 %% of the answers (500)"
    )
    args = parser.parse_args()
    if args.p99_ms and not args.rate:
        parser.error("--p99-ms counts machines, which needs --rate")
    from visionserve_tools.server import capacity

    return capacity.run(args)
